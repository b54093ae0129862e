"""The decoder half of Stable Diffusion's autoencoder (Rombach et al. 2022): latents -> pixels."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.diffusion_layers import GroupNorm, ResnetBlock, attend, conv, dense, upsample

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VaeSpec:
    """Sizes; the defaults are the published model's.

    Attributes:
      latent_channels: of the latents.
      channels: by level, from the finest; every level but the coarsest doubles the resolution.
      resnets: per level of the encoder; the decoder has one more.
      groups: of the group norms.
      scaling: the latents that the diffusion works on are this many times the autoencoder's.
    """

    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    resnets: int = 2
    groups: int = 32
    scaling: float = 0.18215

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.channels) - 1)


class VaeDecoder(nn.Module):
    """Latents as the diffusion leaves them -> colours, nominally in [-1, 1]."""

    spec: VaeSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[B, H, W, latent_channels] -> float32 [B, factor · H, factor · W, 3]."""
        spec, dtype = self.spec, self.dtype
        x = (latents / spec.scaling).astype(dtype)
        x = conv(spec.latent_channels, "conv_latents", dtype, kernel=1)(x)
        x = conv(spec.channels[-1], "conv_in", dtype)(x)
        x = self._resnet(spec.channels[-1], "mid_resnet_0")(x)
        x = PixelAttention(spec, dtype, name="mid_attention_0")(x)
        x = self._resnet(spec.channels[-1], "mid_resnet_1")(x)
        for level in reversed(range(len(spec.channels))):
            for index in range(spec.resnets + 1):
                x = self._resnet(spec.channels[level], f"up_{level}_resnet_{index}")(x)
            if level != 0:
                x = conv(spec.channels[level], f"up_{level}_sample", dtype)(upsample(x))
        x = nn.silu(GroupNorm(spec.groups, EPSILON, dtype, name="norm_out")(x))
        return conv(3, "conv_out", dtype)(x).astype(jnp.float32)

    def _resnet(self, features: int, name: str) -> ResnetBlock:
        return ResnetBlock(features, self.spec.groups, EPSILON, self.dtype, name=name)


class PixelAttention(nn.Module):
    """Every pixel attends to all, with one head: [B, H, W, C] -> [B, H, W, C]."""

    spec: VaeSpec
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = GroupNorm(self.spec.groups, EPSILON, self.dtype, name="norm")(x)
        y = y.reshape(batch, height * width, channels)
        query, key, value = (dense(channels, name, self.dtype)(y) for name in ("query", "key", "value"))
        return x + dense(channels, "out", self.dtype)(attend(query, key, value, 1)).reshape(x.shape)


def to_pixels(colours: jax.Array) -> jax.Array:
    """Colours in [-1, 1] -> uint8; what lies outside is clipped."""
    return jnp.round(jnp.clip(colours / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
