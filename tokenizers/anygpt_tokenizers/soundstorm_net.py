"""The network of SoundStorm (Borsos et al. 2023), as in the port for SpeechTokenizer that AnyGPT uses.

A conformer sees, at every position, the sum of the embeddings of the acoustic levels known so far (an extra
id stands for "not known yet") and of the semantic code, and predicts all levels at once.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.codec import shapes_of_net
from anygpt_tokenizers.trainable_conv import depthwise

HIGHEST = jax.lax.Precision.HIGHEST
ROTARY_BASE = 10000.0
NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class SoundStormSpec:
    """Sizes; the defaults are the published model's.

    Attributes:
      dim, depth, heads, head_dim, ff_mult, conv_expansion, conv_kernel: of the conformer.
      levels: acoustic levels that are predicted, those after the semantic one.
      codebook_size: codes per acoustic level; the id `codebook_size` stands for an unknown code.
      semantic_size: semantic codes.
    """

    dim: int = 1024
    depth: int = 12
    heads: int = 8
    head_dim: int = 128
    ff_mult: int = 4
    conv_expansion: int = 2
    conv_kernel: int = 31
    levels: int = 7
    codebook_size: int = 1024
    semantic_size: int = 1024


class SoundStormNet(nn.Module):
    """Acoustic codes and semantic codes -> logits of the acoustic codes."""

    spec: SoundStormSpec

    @nn.compact
    def __call__(self, codes: jax.Array, semantic: jax.Array, valid: jax.Array) -> jax.Array:
        """Logits [B, N, levels, codebook_size] of codes int32 [B, N, levels], given themselves.

        `semantic` is int32 [B, N], `valid` bool [B, N]; positions that aren't valid influence no other.
        """
        spec, init = self.spec, nn.initializers.normal(1.0)
        rows = (spec.codebook_size + 1) * spec.levels
        code_table = self.param("code_embedding", init, (rows, spec.dim))
        semantic_table = self.param("semantic_embedding", init, (spec.semantic_size, spec.dim))
        offsets = jnp.arange(spec.levels) * (spec.codebook_size + 1)
        x = code_table[codes + offsets].sum(-2) + semantic_table[semantic]
        blocks = nn.scan(
            ConformerBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=spec.depth,
        )
        x, _ = blocks(spec, name="blocks")(x, valid)
        x = _dense(spec.levels * spec.dim, "heads")(x)
        x = _norm("logits_norm")(x.reshape(*x.shape[:-1], spec.levels, spec.dim))
        kernel = self.param(
            "logits_kernel", nn.initializers.lecun_normal(), (spec.levels, spec.dim, spec.codebook_size)
        )
        bias = self.param("logits_bias", nn.initializers.zeros, (spec.levels, spec.codebook_size))
        return jnp.einsum("bnqd,qdc->bnqc", x, kernel, precision=HIGHEST) + bias


def shapes_of(spec: SoundStormSpec) -> dict[str, tuple[int, ...]]:
    """By parameter of `SoundStormNet` ("blocks/query/kernel"): its shape; computes nothing."""
    codes, semantic = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 2, spec.levels), (1, 2)))
    return shapes_of_net(SoundStormNet(spec), codes, semantic, jax.ShapeDtypeStruct((1, 2), bool))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (Gulati et al. 2020)."""

    spec: SoundStormSpec

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> tuple[jax.Array, None]:
        x = x + 0.5 * self._feed_forward(x, "ff_in")
        x = x + self._attention(x, valid)
        x = x + self._convolution(x, valid)
        x = x + 0.5 * self._feed_forward(x, "ff_out")
        return _norm("norm")(x), None

    def _feed_forward(self, x: jax.Array, name: str) -> jax.Array:
        x = _norm(f"{name}_norm")(x)
        x = nn.swish(_dense(self.spec.ff_mult * self.spec.dim, f"{name}_up")(x))
        return _dense(self.spec.dim, f"{name}_down")(x)

    def _attention(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        spec, inner = self.spec, self.spec.heads * self.spec.head_dim
        x = _norm("attention_norm")(x)
        heads = (*x.shape[:2], spec.heads, spec.head_dim)
        query = rotated(_dense(inner, "query", bias=False)(x).reshape(heads))
        key, value = jnp.split(_dense(2 * inner, "key_value", bias=False)(x), 2, axis=-1)
        key, value = rotated(key.reshape(heads)), value.reshape(heads)
        scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, precision=HIGHEST) * spec.head_dim**-0.5
        scores = jnp.where(valid[:, None, None], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", nn.softmax(scores), value, precision=HIGHEST)
        return _dense(spec.dim, "attention_out")(mixed.reshape(*x.shape[:2], inner))

    def _convolution(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        spec, width = self.spec, self.spec.conv_expansion * self.spec.dim
        x = _dense(2 * width, "conv_in")(_norm("conv_norm")(x))
        x, gate = jnp.split(x, 2, axis=-1)
        inside = valid[..., None]
        x = jnp.where(inside, x * nn.sigmoid(gate), 0)
        x = DepthwiseConv(spec.conv_kernel, name="conv")(x)
        x = nn.swish(jnp.where(inside, x, 0))
        gamma = self.param("conv_scale", nn.initializers.ones, (width,))
        spread = jnp.maximum(x.var(-1, keepdims=True), 1e-6)
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(spread) * gamma
        return _dense(spec.dim, "conv_out")(x)


class DepthwiseConv(nn.Module):
    """A convolution [B, N, D] of `kernel_size` positions around each, every channel by itself."""

    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel_size, 1, width))
        return depthwise(x, kernel) + self.param("bias", nn.initializers.zeros, (width,))


def rotated(x: jax.Array) -> jax.Array:
    """Rotary positions 0.. on [B, N, H, D]; dimension i turns together with i + D / 2."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * ROTARY_BASE ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _dense(features: int, name: str, bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, precision=HIGHEST, name=name)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=NORM_EPSILON, use_fast_variance=False, name=name)
