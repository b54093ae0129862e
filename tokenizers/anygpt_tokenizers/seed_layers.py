"""What the networks of SEED-2 share: dense layers, norms, attention and the pre-norm block.

Letters: B rows, N and M tokens, D width, H heads, K width of a head. Matrices are multiplied in `dtype`;
norms, softmax and the sums of the residual stream are float32 whatever it is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.attention import attention, precision_of

# Names of parameters that are stacks of layers.
STACKS = ("blocks", "pairs")


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)), GELU by erf, norms of 1e-6.

    Attributes:
      num_heads, hidden_dim: of attention and mlp.
      key_bias: whether keys have a bias as queries and values do (EVA-CLIP's have none).
      dtype: of the matrix products.
    """

    num_heads: int
    hidden_dim: int
    key_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """float32 [B, N, D] -> the same, and nothing for `in_turn` to collect."""
        dim = x.shape[-1]
        qkv = dense(3 * dim, "qkv", self.dtype, bias=False)(norm("norm_1", 1e-6)(x))
        query, key, value = jnp.split(qkv, 3, axis=-1)
        query, value = query + self._bias("query_bias", dim), value + self._bias("value_bias", dim)
        key = key + self._bias("key_bias", dim) if self.key_bias else key
        mixed = attention(*(heads(part, self.num_heads) for part in (query, key, value)))
        x = x + dense(dim, "attention_out", self.dtype)(mixed)
        hidden = dense(self.hidden_dim, "up", self.dtype)(norm("norm_2", 1e-6)(x))
        return x + dense(dim, "down", self.dtype)(nn.gelu(hidden, approximate=False)), None

    def _bias(self, name: str, dim: int) -> jax.Array:
        return self.param(name, nn.initializers.zeros, (dim,)).astype(self.dtype)


def in_turn(
    module: nn.Module, name: str, layer: type[nn.Module], settings: tuple, length: int, x: jax.Array, *shared
) -> jax.Array:
    """x through `length` layers `layer(*settings)`, which return (x, None) and are given `shared` as well.

    `module`, whose `__call__` this is a part of, has their parameters under `name`: stacked along a first
    axis or, as `laid_apart` makes them, a tuple.
    """
    given = module.variables.get("params", {}).get(name)
    if isinstance(given, tuple):
        for params in given:
            x = layer(*settings, parent=None).apply({"params": params}, x, *shared)[0]
        return x
    stack = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
    )
    return stack(*settings, name=name)(x, *shared)[0]


def laid_apart(params: dict) -> dict:
    """Parameters in which every stack of layers is a tuple of the single layers' own.

    A CPU reads those where they lie. Of a stack it copies each layer's before it multiplies by them, which
    for one picture takes as long as a third of the products.
    """
    apart = {}
    for name, value in params.items():
        if name in STACKS:
            length = len(jax.tree.leaves(value)[0])
            layers = (jax.tree.map(lambda stack, index=index: stack[index], value) for index in range(length))
            apart[name] = tuple(layers)
        else:
            apart[name] = laid_apart(value) if isinstance(value, dict) else value
    return apart


def heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, N, H·K] -> [B, N, H, K]."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def dense(features: int, name: str, dtype: jnp.dtype, bias: bool = True) -> nn.Dense:
    """A linear layer that multiplies in `dtype`."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, precision=precision_of(dtype), name=name)


def norm(name: str, epsilon: float) -> nn.LayerNorm:
    """LayerNorm in float32, the variance computed as torch does."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)
