"""Discriminators of sound: over periods, over scales, and over short-time spectra.

The first two are HiFi-GAN's (Kong et al. 2020), the third is EnCodec's (Défossez et al. 2022), at the sizes
that SpeechTokenizer trains with. Each is a list of sub-discriminators, and each of those gives logits and the
activations of its layers, which feature matching compares. Layout is channels-last.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers import spectral
from anygpt_tokenizers.trainable_conv import convolve

HIGHEST = jax.lax.Precision.HIGHEST
SCALE_GROUPS = (1, 4, 16, 16, 16, 16, 1)


class Judgement(NamedTuple):
    """Of one sub-discriminator: logits [B, ...], and what its layers found, each [B or B · period, ...]."""

    logits: jax.Array
    features: list[jax.Array]


class NormedConv(nn.Module):
    """Convolution in one or two dimensions of a normalised kernel.

    Attributes:
      norm: "weight" (Salimans and Kingma 2016), "spectral" (Miyato et al. 2018) or "none". The spectral
        norm's singular vectors live in the collection "spectral" and take one power iteration whenever it is
        mutable.
    """

    features: int
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int] | None = None
    groups: int = 1
    norm: str = "weight"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.norm == "weight":
            size = self.param("size", lambda _: kernel_sizes(kernel))
            kernel = kernel * (size / kernel_sizes(kernel))
        elif self.norm == "spectral":
            kernel = kernel / self._largest_singular_value(kernel.reshape(-1, self.features))
        y = convolve(x, kernel, self.stride, self.padding, self.dilation, self.groups)
        return y + bias

    def _largest_singular_value(self, matrix: jax.Array) -> jax.Array:
        def start(size: int) -> jax.Array:
            return _unit(jax.random.normal(self.make_rng("params"), (size,)))

        right = self.variable("spectral", "right", start, matrix.shape[1])
        left = self.variable("spectral", "left", start, matrix.shape[0])
        if self.is_mutable_collection("spectral"):
            still = jax.lax.stop_gradient(matrix)
            left.value = _unit(jnp.matmul(still, right.value, precision=HIGHEST))
            right.value = _unit(jnp.matmul(left.value, still, precision=HIGHEST))
        return jnp.einsum("i,ij,j->", left.value, matrix, right.value, precision=HIGHEST)


def kernel_sizes(kernel: jax.Array) -> jax.Array:
    """Euclidean norm [features] of each output's part of a kernel [..., features]."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=range(kernel.ndim - 1)))


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample. Widths are divided by `shrink`."""

    period: int
    shrink: int = 1

    @nn.compact
    def __call__(self, wave: jax.Array) -> Judgement:
        batch, length = wave.shape
        wave = jnp.pad(wave, ((0, 0), (0, -length % self.period)), mode="reflect")
        columns = jnp.swapaxes(wave.reshape(batch, -1, self.period), 1, 2)
        x = columns.reshape(batch * self.period, -1, 1)  # the columns don't mix: a convolution over time
        features = []
        for i, (width, stride) in enumerate(zip((32, 128, 512, 1024, 1024), (3, 3, 3, 3, 1), strict=True)):
            x = NormedConv(width // self.shrink, (5,), (stride,), (2,), name=f"convs_{i}")(x)
            x = nn.leaky_relu(x, 0.1)
            features.append(x)
        logits = NormedConv(1, (3,), (1,), (1,), name="conv_post")(x)
        return Judgement(logits.reshape(batch, -1), [*features, logits])


class ScaleDiscriminator(nn.Module):
    """Sees the waveform. Widths are divided by `shrink`."""

    norm: str = "weight"
    shrink: int = 1

    @nn.compact
    def __call__(self, wave: jax.Array) -> Judgement:
        widths, strides = (128, 128, 256, 512, 1024, 1024, 1024), (1, 2, 2, 4, 4, 1, 1)
        kernels = (15, 41, 41, 41, 41, 41, 5)
        x, features = wave[..., None], []
        for i, (width, kernel, stride, groups) in enumerate(
            zip(widths, kernels, strides, SCALE_GROUPS, strict=True)
        ):
            width //= self.shrink
            groups = math.gcd(groups, x.shape[-1], width)
            conv = NormedConv(
                width, (kernel,), (stride,), (kernel // 2,), None, groups, self.norm, name=f"convs_{i}"
            )
            x = nn.leaky_relu(conv(x), 0.1)
            features.append(x)
        logits = NormedConv(1, (3,), (1,), (1,), norm=self.norm, name="conv_post")(x)
        return Judgement(logits[..., 0], [*features, logits])


class SpectrumDiscriminator(nn.Module):
    """Sees the real and the imaginary part of a spectrum of windows of `n_fft` samples, a quarter apart."""

    n_fft: int
    filters: int = 32
    slope: float = 0.2

    @nn.compact
    def __call__(self, wave: jax.Array) -> Judgement:
        window = spectral.hann(self.n_fft)
        frames = spectral.frames(wave, self.n_fft, self.n_fft // 4) * window
        spectrum = jnp.fft.rfft(frames) / math.sqrt((window.astype(float) ** 2).sum())
        x, features = jnp.stack([spectrum.real, spectrum.imag], -1), []  # [B, F, bins, 2]
        for i, (width, stride, dilation) in enumerate(
            [(9, 1, 1), (9, 2, 1), (9, 2, 2), (9, 2, 4), (3, 1, 1)]
        ):
            conv = NormedConv(
                self.filters,
                (3, width),
                (1, stride),
                (dilation, width // 2),
                (dilation, 1),
                norm="none" if i == 0 else "weight",
                name=f"convs_{i}",
            )
            x = nn.leaky_relu(conv(x), self.slope)
            features.append(x)
        return Judgement(NormedConv(1, (3, 3), (1, 1), (1, 1), name="conv_post")(x)[..., 0], features)


class Discriminators(nn.Module):
    """All sub-discriminators of a recipe: waveform [B, T] -> a Judgement of each.

    Attributes:
      periods: of the period discriminators; SpeechTokenizer's are 2, 3, 5, 7, 11.
      scales: how many scale discriminators, each hearing half the rate of the one before; 3 there. The first
        has spectral norms.
      n_ffts: of the spectrum discriminators: 1024, 2048, 512, 256, 128. T is at least the largest.
      shrink: what the widths of the first two kinds are divided by.
      filters, slope: width and negative slope of the third kind.
    """

    periods: Sequence[int] = ()
    scales: int = 0
    n_ffts: Sequence[int] = ()
    shrink: int = 1
    filters: int = 32
    slope: float = 0.2

    def setup(self):
        self.by_period = [PeriodDiscriminator(period, self.shrink) for period in self.periods]
        self.by_scale = [
            ScaleDiscriminator("weight" if i else "spectral", self.shrink) for i in range(self.scales)
        ]
        self.by_spectrum = [SpectrumDiscriminator(n_fft, self.filters, self.slope) for n_fft in self.n_ffts]

    def __call__(self, wave: jax.Array) -> list[Judgement]:
        judgements = [judge(wave) for judge in self.by_period]
        coarser = wave
        for i, judge in enumerate(self.by_scale):
            coarser = halved(coarser) if i else wave
            judgements.append(judge(coarser))
        return [*judgements, *(judge(wave) for judge in self.by_spectrum)]


def halved(wave: jax.Array) -> jax.Array:
    """Means of 4 samples, 2 apart, zeros around: [B, T] -> [B, T // 2 + 1]."""
    return jax.lax.reduce_window(wave, 0.0, jax.lax.add, (1, 4), (1, 2), ((0, 0), (2, 2))) / 4
