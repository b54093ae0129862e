"""The text encoder of Stable unCLIP 2.1: OpenCLIP ViT-H's (Radford et al. 2021) without its last layer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.diffusion_layers import attend, dense, layer_norm

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Sizes; the defaults are the published model's.

    Attributes:
      vocab_size, positions: rows of the two tables.
      embed_dim, hidden_dim, num_layers, num_heads: of the transformer.
      activation: "gelu" or "quick_gelu".
      epsilon: of the layer norms.
    """

    vocab_size: int = 49408
    positions: int = 77
    embed_dim: int = 1024
    hidden_dim: int = 4096
    num_layers: int = 23
    num_heads: int = 16
    activation: str = "gelu"
    epsilon: float = 1e-5


class ClipText(nn.Module):
    """Tokens -> the last layer's states after the final norm."""

    spec: TextSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T], T at most `positions` -> float32 [B, T, embed_dim]. Padding is attended to."""
        spec, init = self.spec, nn.initializers.normal(0.02)
        table = self.param("tokens", init, (spec.vocab_size, spec.embed_dim))
        places = self.param("positions", init, (spec.positions, spec.embed_dim))
        x = (table[tokens] + places[: tokens.shape[1]]).astype(self.dtype)
        blocks = nn.scan(
            TextBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=spec.num_layers
        )
        x, _ = blocks(spec, self.dtype, name="blocks")(x, None)
        return layer_norm("norm_out", spec.epsilon, self.dtype)(x).astype(jnp.float32)


class TextBlock(nn.Module):
    """Causal attention and a feed-forward, each after its norm."""

    spec: TextSpec
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        spec, dtype = self.spec, self.dtype
        y = layer_norm("attention_norm", spec.epsilon, dtype)(x)
        query, key, value = (dense(spec.embed_dim, name, dtype)(y) for name in ("query", "key", "value"))
        x = x + dense(spec.embed_dim, "out", dtype)(attend(query, key, value, spec.num_heads, causal=True))
        y = dense(spec.hidden_dim, "ff_in", dtype)(layer_norm("ff_norm", spec.epsilon, dtype)(x))
        return x + dense(spec.embed_dim, "ff_out", dtype)(ACTIVATIONS[spec.activation](y)), None
