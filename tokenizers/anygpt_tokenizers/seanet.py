"""SEANet: the convolutional encoder and decoder of EnCodec and SpeechTokenizer (Tagliasacchi et al. 2020).

Layout is channels-last, [B, T, C]. The trunk follows EnCodec (Défossez et al. 2022): a convolution, then per
stride a residual block, ELU and a strided convolution of kernel 2·stride that doubles the width; the decoder
is the mirror image. Padding is zeros, split as in EnCodec's non-causal mode (the left side gets the odd
sample).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

KERNEL = 7
RESIDUAL_KERNEL = 3


def same_padding(kernel: int, stride: int = 1) -> list[tuple[int, int]]:
    """(left, right) zeros with which T samples, T a multiple of the stride, give T / stride frames."""
    total = kernel - stride
    return [(total - total // 2, total // 2)]


class Conv(nn.Module):
    """1-D convolution [B, T, C] -> [B, T / stride, features]."""

    features: int
    kernel: int
    stride: int = 1
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = same_padding(self.kernel, self.stride)
        conv = nn.Conv(
            self.features, (self.kernel,), self.stride, padding, precision=self.precision, name="conv"
        )
        return conv(x)


class TransposedConv(nn.Module):
    """Transposed convolution of kernel 2·stride, [B, T, C] -> [B, T·stride, features].

    Computed as one matrix product and a sum of two overlapping halves: XLA's gradient of a dilated
    convolution is many times slower on CPU.
    """

    features: int
    stride: int
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, channels = x.shape
        span = self.stride * self.features
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=-1)
        kernel = self.param("kernel", init, (channels, 2 * self.stride, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # [B, T, 2 · span]
        product = jnp.matmul(x, kernel.reshape(channels, 2 * span), precision=self.precision)
        early = jnp.pad(product[..., :span], ((0, 0), (0, 1), (0, 0)))
        late = jnp.pad(product[..., span:], ((0, 0), (1, 0), (0, 0)))
        full = (early + late).reshape(batch, (length + 1) * self.stride, self.features)
        left = self.stride - self.stride // 2
        return full[:, left : left + length * self.stride] + bias


class ResidualBlock(nn.Module):
    """x + conv1(ELU(conv3(ELU(x)))) with half the width inside."""

    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = Conv(width // 2, RESIDUAL_KERNEL, precision=self.precision, name="conv_in")(nn.elu(x))
        return x + Conv(width, 1, precision=self.precision, name="conv_out")(nn.elu(h))


class SeanetEncoder(nn.Module):
    """[B, T, C] -> latents [B, T / prod(strides), dimension].

    Attributes:
      n_filters: width of the first convolution; doubled at each stride.
      strides: in the order in which they are applied.
      dimension: width of the latents.
      residual_layers: residual blocks before each stride.
    """

    n_filters: int
    strides: Sequence[int]
    dimension: int
    residual_layers: int = 1
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.n_filters
        x = Conv(width, KERNEL, precision=self.precision, name="conv_in")(x)
        for i, stride in enumerate(self.strides):
            for j in range(self.residual_layers):
                x = ResidualBlock(precision=self.precision, name=f"residual_{i}_{j}")(x)
            width *= 2
            x = Conv(width, 2 * stride, stride, precision=self.precision, name=f"down_{i}")(nn.elu(x))
        return Conv(self.dimension, KERNEL, precision=self.precision, name="conv_out")(nn.elu(x))


class SeanetDecoder(nn.Module):
    """Latents [B, F, D] -> [B, F · prod(strides), channels].

    Attributes:
      n_filters: width before the last convolution; doubled at each stride going back.
      strides: in the order in which they are applied.
      channels: of the output: 1 for a waveform, more for the frames of a spectral head.
      residual_layers: residual blocks after each stride.
    """

    n_filters: int
    strides: Sequence[int]
    channels: int
    residual_layers: int = 1
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.n_filters * 2 ** len(self.strides)
        x = Conv(width, KERNEL, precision=self.precision, name="conv_in")(x)
        for i, stride in enumerate(self.strides):
            width //= 2
            x = TransposedConv(width, stride, precision=self.precision, name=f"up_{i}")(nn.elu(x))
            for j in range(self.residual_layers):
                x = ResidualBlock(precision=self.precision, name=f"residual_{i}_{j}")(x)
        return Conv(self.channels, KERNEL if self.channels == 1 else 1, name="conv_out")(nn.elu(x))
