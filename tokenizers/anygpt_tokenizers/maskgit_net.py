"""MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200): residual convolutions, no attention.

Parameters have the names that Flax gave those of the published checkpoints (Conv_0, ResBlock_3/GroupNorm_1
…), so the order in which layers are called here is part of the file format. The published size is 128
filters, multipliers 1, 1, 2, 2, 4 and two blocks a level: 54,515,587 parameters with its 1024 codes of 256.
Layout is channels-last; products are computed in `dtype`, norms in float32.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.attention import precision_of

EPSILON = 1e-6


class ResBlock(nn.Module):
    """Two 3 × 3 convolutions, each after a norm and swish, added to the input.

    Where the width changes, the published network adds a 1 × 1 convolution of the two convolutions' result
    and not of the input, so that nothing of the input goes past them; so does this one.
    """

    filters: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, filters]."""
        conv = _conv(self.dtype, use_bias=False)
        h = conv(self.filters, (3, 3))(_swish_of_norm(self.groups)(x))
        h = conv(self.filters, (3, 3))(_swish_of_norm(self.groups)(h))
        if x.shape[-1] != self.filters:
            x = conv(self.filters, (1, 1))(h)
        return x + h


class Encoder(nn.Module):
    """Pixels to latents, halving the sides between levels.

    Attributes:
      filters, multipliers: width of the first level, and of each level as its multiple.
      res_blocks: of a level, and after the last.
      groups: of the norms. latent_dim: of what comes out.
    """

    filters: int
    multipliers: Sequence[int]
    res_blocks: int
    groups: int
    latent_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """float32 [B, S, S, 3] from 0 to 1 -> float32 [B, S/2ⁿ⁻¹, S/2ⁿ⁻¹, latent_dim] of n levels."""
        conv = _conv(self.dtype)
        x = conv(self.filters, (3, 3), use_bias=False)(pixels)
        for level, multiplier in enumerate(self.multipliers):
            if level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(self.res_blocks):
                x = ResBlock(self.filters * multiplier, self.groups, self.dtype)(x)
        for _ in range(self.res_blocks):
            x = ResBlock(self.filters * self.multipliers[-1], self.groups, self.dtype)(x)
        return conv(self.latent_dim, (1, 1))(_swish_of_norm(self.groups)(x)).astype(jnp.float32)


class Decoder(nn.Module):
    """Values of codes to pixels; attributes as in `Encoder`, and `channels` of what comes out."""

    filters: int
    multipliers: Sequence[int]
    res_blocks: int
    groups: int
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """float32 [B, H, W, D] -> float32 [B, S, S, channels]."""
        conv = _conv(self.dtype)
        x = conv(self.filters * self.multipliers[-1], (3, 3))(values)
        for _ in range(self.res_blocks):
            x = ResBlock(self.filters * self.multipliers[-1], self.groups, self.dtype)(x)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.res_blocks):
                x = ResBlock(self.filters * multiplier, self.groups, self.dtype)(x)
            if level:
                x = conv(self.filters * multiplier, (3, 3))(_doubled(x))
        return conv(self.channels, (3, 3))(_swish_of_norm(self.groups)(x)).astype(jnp.float32)


def _conv(dtype: jnp.dtype, **options) -> functools.partial:
    return functools.partial(nn.Conv, dtype=dtype, precision=precision_of(dtype), **options)


def _swish_of_norm(groups: int):
    norm = nn.GroupNorm(groups, epsilon=EPSILON, dtype=jnp.float32, use_fast_variance=False)
    return lambda x: nn.swish(norm(x))


def _doubled(x: jax.Array) -> jax.Array:
    """Every pixel four times: [B, H, W, C] -> [B, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
