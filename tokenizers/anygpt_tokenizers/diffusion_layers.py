"""Layers that the unCLIP UNet and the autoencoder share. Images are NHWC.

Matrix products and convolutions run in the module's dtype (float32 at the highest precision of the back end);
norms and softmax always in float32. Every epsilon is the caller's: the published networks mix 1e-5 and 1e-6.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.attention import attention, precision_of


def dense(features: int, name: str, dtype: jnp.dtype, bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, dtype=dtype, precision=precision_of(dtype), name=name)


def conv(features: int, name: str, dtype: jnp.dtype, kernel: int = 3, stride: int = 1) -> nn.Conv:
    """A square convolution that pads both sides by kernel // 2, also where it strides (SAME would not)."""
    side = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=side,
        dtype=dtype,
        precision=precision_of(dtype),
        name=name,
    )


def layer_norm(name: str, epsilon: float, dtype: jnp.dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Mean 0 and variance 1 over pixels and groups of neighbouring channels, then scale and bias."""

    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> the same shape, in `dtype`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        pixels = x.reshape(len(x), -1, channels).astype(jnp.float32)
        centred = pixels - self._by_group(pixels.mean(1))[:, None]
        variance = self._by_group(jnp.square(centred).mean(1))
        normed = centred * (jax.lax.rsqrt(variance + self.epsilon) * scale)[:, None] + bias
        return normed.reshape(x.shape).astype(self.dtype)

    def _by_group(self, values: jax.Array) -> jax.Array:
        """[B, C] -> each channel gets the mean of its group."""
        grouped = values.reshape(len(values), self.groups, -1)
        return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(values.shape)


class ResnetBlock(nn.Module):
    """Two convolutions of 3×3 after norms; an embedding [B, E], where there is one, is added between them."""

    features: int
    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        y = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm_in")(x))
        y = conv(self.features, "conv_in", self.dtype)(y)
        if embedding is not None:
            y = y + dense(self.features, "embedding", self.dtype)(nn.silu(embedding))[:, None, None]
        y = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm_out")(y))
        y = conv(self.features, "conv_out", self.dtype)(y)
        if x.shape[-1] != self.features:
            x = conv(self.features, "shortcut", self.dtype, kernel=1)(x)
        return x + y


def upsample(x: jax.Array) -> jax.Array:
    """Every pixel of [B, H, W, C] becomes 2 × 2."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, causal: bool = False) -> jax.Array:
    """Attention of query [B, N, C] over key and value [B, M, C], scaled by 1/√(C / heads) -> [B, N, C].

    `causal`: position n sees 0..n only.
    """
    mask = jnp.where(jnp.tri(query.shape[1], dtype=bool), 0.0, -jnp.inf) if causal else None
    return attention(*(part.reshape(*part.shape[:2], heads, -1) for part in (query, key, value)), mask)


def sinusoid(values: jax.Array, size: int) -> jax.Array:
    """Values [B] -> [B, size] float32: cosines, then sines, of wavelengths from 2π towards 20000π."""
    half = size // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
