"""The denoising network of Stable unCLIP 2.1 (Rombach et al. 2022), on latents [B, H, W, 4].

Three levels with attention and one without, down and up again. What a picture shall show enters twice: a
class label (a CLIP image embedding and its noise level) is added to the embedding of the diffusion time, and
text is attended to.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.diffusion_layers import (
    GroupNorm,
    ResnetBlock,
    attend,
    conv,
    dense,
    layer_norm,
    sinusoid,
    upsample,
)

TRANSFORMER_GROUP_EPSILON = 1e-6
LAYER_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class UNetSpec:
    """Sizes; the defaults are the published model's.

    Attributes:
      sample_size: side of the latents.
      latent_channels: of the latents.
      channels, heads, attention: by level, from the finest: channels, attention heads, whether it attends.
      resnets: per level on the way down; one more on the way up.
      text_dim: of the text that is attended to.
      class_dim: of the class label.
      groups, epsilon: of the group norms outside transformers.
    """

    sample_size: int = 96
    latent_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    attention: tuple[bool, ...] = (True, True, True, False)
    resnets: int = 2
    text_dim: int = 1024
    class_dim: int = 2048
    groups: int = 32
    epsilon: float = 1e-5


class UNet(nn.Module):
    """Noisy latents, times, text and class labels -> what the model was trained to predict (v)."""

    spec: UNetSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, text: jax.Array, label: jax.Array) -> jax.Array:
        """float32 [B, H, W, latent_channels] of x of the same shape; H and W a multiple of 2^(levels - 1).

        Args:
          time: [B], 0..999.
          text: [B, T, text_dim].
          label: [B, class_dim].
        """
        spec, dtype = self.spec, self.dtype
        levels = range(len(spec.channels))
        time = sinusoid(time, spec.channels[0])
        embedding = Embedding(spec, dtype, name="time")(time) + Embedding(spec, dtype, name="label")(label)
        text = text.astype(dtype)
        x = conv(spec.channels[0], "conv_in", dtype)(x.astype(dtype))
        skips = [x]
        for level in levels:
            for index in range(spec.resnets):
                x = self._block(level, f"down_{level}", index)(x, embedding, text)
                skips.append(x)
            if level != levels[-1]:
                x = conv(spec.channels[level], f"down_{level}_sample", dtype, stride=2)(x)
                skips.append(x)
        x = self._resnet(levels[-1], "mid_resnet_0")(x, embedding)
        x = Transformer(spec, spec.heads[-1], dtype, name="mid_attention_0")(x, text)
        x = self._resnet(levels[-1], "mid_resnet_1")(x, embedding)
        for level in reversed(levels):
            for index in range(spec.resnets + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._block(level, f"up_{level}", index)(x, embedding, text)
            if level != 0:
                x = conv(spec.channels[level], f"up_{level}_sample", dtype)(upsample(x))
        x = nn.silu(GroupNorm(spec.groups, spec.epsilon, dtype, name="norm_out")(x))
        return conv(spec.latent_channels, "conv_out", dtype)(x).astype(jnp.float32)

    def _resnet(self, level: int, name: str) -> ResnetBlock:
        spec = self.spec
        return ResnetBlock(spec.channels[level], spec.groups, spec.epsilon, self.dtype, name=name)

    def _block(self, level: int, stem: str, index: int):
        """A residual block and, on levels that attend, a transformer."""
        spec = self.spec

        def block(x: jax.Array, embedding: jax.Array, text: jax.Array) -> jax.Array:
            x = self._resnet(level, f"{stem}_resnet_{index}")(x, embedding)
            if spec.attention[level]:
                name = f"{stem}_attention_{index}"
                x = Transformer(spec, spec.heads[level], self.dtype, name=name)(x, text)
            return x

        return block


class Embedding(nn.Module):
    """Two dense layers: [B, N] -> [B, 4 · channels[0]]."""

    spec: UNetSpec
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = 4 * self.spec.channels[0]
        x = nn.silu(dense(width, "in", self.dtype)(x.astype(self.dtype)))
        return dense(width, "out", self.dtype)(x)


class Transformer(nn.Module):
    """All pixels attend to one another and to the text, and each goes through a gated feed-forward."""

    spec: UNetSpec
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """x [B, H, W, C] and text [B, T, text_dim] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        y = GroupNorm(self.spec.groups, TRANSFORMER_GROUP_EPSILON, self.dtype, name="norm")(x)
        y = self._dense(channels, "in")(y.reshape(batch, height * width, channels))
        normed = self._norm("self_norm")(y)
        y = y + self._attention(normed, normed, "self")
        y = y + self._attention(self._norm("text_norm")(y), text, "text")
        main, gate = jnp.split(self._dense(8 * channels, "ff_in")(self._norm("ff_norm")(y)), 2, axis=-1)
        y = y + self._dense(channels, "ff_out")(main * nn.gelu(gate, approximate=False))
        return x + self._dense(channels, "out")(y).reshape(x.shape)

    def _attention(self, x: jax.Array, context: jax.Array, name: str) -> jax.Array:
        channels = x.shape[-1]
        query = self._dense(channels, f"{name}_query", bias=False)(x)
        key = self._dense(channels, f"{name}_key", bias=False)(context)
        value = self._dense(channels, f"{name}_value", bias=False)(context)
        return self._dense(channels, f"{name}_out")(attend(query, key, value, self.heads))

    def _dense(self, features: int, name: str, bias: bool = True) -> nn.Dense:
        return dense(features, name, self.dtype, bias)

    def _norm(self, name: str) -> nn.LayerNorm:
        return layer_norm(name, LAYER_EPSILON, self.dtype)
