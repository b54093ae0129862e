"""The SEANet codec of EnCodec (Défossez et al. 2022) and SpeechTokenizer (Zhang et al. 2023), exactly.

Encoder: a local part (the trunk: convolutions that shorten the signal `hop_length` times), an LSTM, and a
head of one convolution. The decoder mirrors it. The parts are separate methods, because the local ones can
work on any window of a clip while the LSTM has to be carried along; `published_programs` puts them together.
"""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_layers import (
    HIGHEST,
    Activation,
    ClipConv,
    ClipResidualBlock,
    ClipTransposedConv,
    Window,
)
from anygpt_tokenizers.codec import shapes_of_net
from anygpt_tokenizers.lstm import Lstm

MAY_BE_ZERO = ("residual_layers",)  # of the whole numbers in a SeanetSpec


@dataclasses.dataclass(frozen=True)
class SeanetSpec:
    """Sizes and conventions, named as in the originals.

    Attributes:
      n_filters: width at the sample rate; doubled at each stride.
      strides: in the decoder's order; the encoder applies them from the last to the first.
      dimension: width of the latents and of the codebooks.
      quantizers, codebook_size: levels in the weights, and vectors in each.
      kernel, last_kernel: of the first and the last convolution of encoder and decoder.
      residual_kernel, residual_layers, dilation_base, compress: of the residual blocks.
      lstm_layers, bidirectional: the latter of the encoder's LSTM only.
      activation: "ELU" or "Snake".
      conv_shortcut: whether residual blocks have a convolution in their shortcut.
      causal, pad_mode, trim_right_ratio: how the ends of a clip are treated; see `clip_layers`.
      semantic_dimension: width of the teacher's features that level 0 is projected to, or None.
      channels: of the sound.
      time_group_norm: whether a `TimeNorm` follows every convolution, so that every sample of a clip depends
        on all of it: such a codec takes clips whole, and isn't causal.
    """

    n_filters: int
    strides: Sequence[int]
    dimension: int
    quantizers: int
    codebook_size: int
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    lstm_layers: int = 2
    bidirectional: bool = False
    activation: str = "ELU"
    conv_shortcut: bool = True
    causal: bool = False
    pad_mode: str = "reflect"
    trim_right_ratio: float = 1.0
    semantic_dimension: int | None = None
    channels: int = 1
    time_group_norm: bool = False

    def __post_init__(self):
        for name, known in (("activation", ("ELU", "Snake")), ("pad_mode", ("reflect", "constant"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; there are {' and '.join(known)}.")

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def width(self) -> int:
        """Width of the LSTM."""
        return self.n_filters * 2 ** len(self.strides)

    def conv(self, features: int, kernel: int, stride: int = 1) -> ClipConv:
        """A convolution with this codec's conventions."""
        return ClipConv(features, kernel, stride, 1, self.causal, self.pad_mode, self.time_group_norm)

    def residual(self, width: int, layer: int) -> ClipResidualBlock:
        """Residual block number `layer` at one width."""
        return ClipResidualBlock(
            width,
            self.residual_kernel,
            self.dilation_base**layer,
            self.compress,
            self.activation,
            self.conv_shortcut,
            self.causal,
            self.pad_mode,
            self.time_group_norm,
        )


class SeanetTrunkDown(nn.Module):
    """The encoder before the LSTM: waveform [B, W, channels] -> [B, frames, width]."""

    spec: SeanetSpec

    def setup(self):
        spec, width = self.spec, self.spec.n_filters
        layers = [spec.conv(width, spec.kernel)]
        for stride in reversed(spec.strides):
            layers += [spec.residual(width, j) for j in range(spec.residual_layers)]
            width *= 2
            layers += [Activation(spec.activation), spec.conv(width, 2 * stride, stride)]
        self.layers = layers

    def __call__(self, window: Window) -> Window:
        for layer in self.layers:
            window = layer(window)
        return window


class SeanetTrunkUp(nn.Module):
    """The decoder after the LSTM: [B, frames, width] -> waveform [B, W, channels]."""

    spec: SeanetSpec

    def setup(self):
        spec, width, layers = self.spec, self.spec.width, []
        for stride in spec.strides:
            width //= 2
            layers += [
                Activation(spec.activation),
                ClipTransposedConv(width, stride, spec.causal, spec.trim_right_ratio, spec.time_group_norm),
            ]
            layers += [spec.residual(width, j) for j in range(spec.residual_layers)]
        layers += [Activation(spec.activation), spec.conv(spec.channels, spec.last_kernel)]
        self.layers = layers

    def __call__(self, window: Window) -> Window:
        for layer in self.layers:
            window = layer(window)
        return window


class ResidualQuantizer(nn.Module):
    """Residual vector quantisation with codebooks [K, N, D], in the originals' arithmetic."""

    levels: int
    size: int
    dimension: int

    def setup(self):
        self.embed = self.param(
            "embed", nn.initializers.normal(1.0), (self.levels, self.size, self.dimension)
        )

    def encode(self, latents: jax.Array, first: int, last: int) -> jax.Array:
        """Latents [..., D] -> int32 [..., last - first]; level `first` quantises the latents themselves.

        The distance is expanded as |x|² - 2·x·e + |e|², and the first of equal codes wins.
        """

        def level(residual: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
            products = jnp.einsum("...d,nd->...n", 2 * residual, codebook, precision=HIGHEST)
            squares = jnp.sum(residual**2, -1, keepdims=True)
            codes = jnp.argmax(-(squares - products + jnp.sum(codebook**2, -1)), -1).astype(jnp.int32)
            return residual - codebook[codes], codes

        _, codes = jax.lax.scan(level, latents.astype(jnp.float32), self.embed[first:last])
        return jnp.moveaxis(codes, 0, -1)

    def decode(self, codes: jax.Array, first: int = 0) -> jax.Array:
        """Codes [..., n] of levels first..first+n-1 -> the sum [..., D] of their vectors."""
        return sum(self.embed[first + i][codes[..., i]] for i in range(codes.shape[-1]))


class PublishedSeanet(nn.Module):
    """Encoder, quantiser and decoder, part by part."""

    spec: SeanetSpec

    def setup(self):
        spec = self.spec
        self.trunk_down = SeanetTrunkDown(spec)
        self.encoder_lstm = Lstm(spec.width, spec.lstm_layers, spec.bidirectional)
        self.encoder_act = Activation(spec.activation)
        self.encoder_out = spec.conv(spec.dimension, spec.last_kernel)
        self.quantizer = ResidualQuantizer(spec.quantizers, spec.codebook_size, spec.dimension)
        self.decoder_in = spec.conv(spec.width, spec.kernel)
        self.decoder_lstm = Lstm(spec.width, spec.lstm_layers)
        self.trunk_up = SeanetTrunkUp(spec)
        if spec.semantic_dimension:
            self.transform = nn.Dense(spec.semantic_dimension, precision=HIGHEST)

    def down(self, window: Window) -> Window:
        """Encoder trunk."""
        return self.trunk_down(window)

    def up(self, window: Window) -> Window:
        """Decoder trunk."""
        return self.trunk_up(window)

    def encoder_head(self, window: Window) -> Window:
        """The encoder after its LSTM: frames -> latents."""
        return self.encoder_out(self.encoder_act(window))

    def decoder_head(self, window: Window) -> Window:
        """The decoder before its LSTM: latents -> frames."""
        return self.decoder_in(window)

    def quantize(self, latents: jax.Array, first: int, last: int) -> jax.Array:
        """See `ResidualQuantizer.encode`."""
        return self.quantizer.encode(latents, first, last)

    def dequantize(self, codes: jax.Array, first: int) -> jax.Array:
        """See `ResidualQuantizer.decode`."""
        return self.quantizer.decode(codes, first)

    def semantic(self, codes: jax.Array) -> jax.Array:
        """Codes [..., 1] of level 0 -> the features [..., S] that were trained to match the teacher's."""
        return self.project(self.quantizer.decode(codes))

    def project(self, vectors: jax.Array) -> jax.Array:
        """Vectors [..., D] of level 0's codebook -> features [..., S] in the teacher's space."""
        return self.transform(vectors) if self.spec.semantic_dimension else vectors

    def encoder_recurrence(self, x, valid, carries=None):
        """See `Lstm`."""
        return self.encoder_lstm(x, valid, carries)

    def encoder_direction(self, layer, reverse, x, valid, carry):
        """See `Lstm.direction`."""
        return self.encoder_lstm.direction(layer, reverse, x, valid, carry)

    def encoder_skip(self, x, y):
        """See `Lstm.skip`."""
        return self.encoder_lstm.skip(x, y)

    def decoder_recurrence(self, x, valid, carries=None):
        """See `Lstm`."""
        return self.decoder_lstm(x, valid, carries)

    def __call__(self, wave: jax.Array) -> jax.Array:
        """Touches every parameter once (initialisation): waveform [B, F·hop_length] -> [B, T, channels]."""
        length = jnp.full(wave.shape[:1], wave.shape[1])
        wave = jnp.broadcast_to(wave[..., None], (*wave.shape, self.spec.channels))
        frames = self.down(Window(wave, jnp.int32(0), 0, length))
        x = jnp.swapaxes(frames.x, 0, 1)
        y, _ = self.encoder_recurrence(x, jnp.ones(x.shape[:2], bool))
        latents = self.encoder_head(frames._replace(x=jnp.swapaxes(y, 0, 1)))
        quantized = self.quantizer.decode(self.quantize(latents.x, 0, self.spec.quantizers))
        self.semantic(self.quantize(latents.x, 0, 1))
        frames = self.decoder_head(latents._replace(x=quantized))
        x = jnp.swapaxes(frames.x, 0, 1)
        y, _ = self.decoder_recurrence(x, jnp.ones(x.shape[:2], bool))
        return self.up(frames._replace(x=jnp.swapaxes(y, 0, 1))).x


def shapes_of(spec: SeanetSpec) -> dict[str, tuple[int, ...]]:
    """By parameter of `PublishedSeanet` ("encoder_out/kernel"): its shape; computes nothing."""
    wave = jax.ShapeDtypeStruct((1, 16 * spec.hop_length), jnp.float32)
    return shapes_of_net(PublishedSeanet(spec), wave)


def is_transposed(path: tuple[str, ...], spec: SeanetSpec) -> bool:
    """Whether the kernel at this path of the parameters is a transposed convolution's."""
    # In the decoder's trunk they come after every activation but the last, outside the residual blocks.
    last = f"layers_{len(spec.strides) * (spec.residual_layers + 2) + 1}"
    return path[0] == "trunk_up" and len(path) == 3 and path[1] != last


def samples_for_frames(spec: SeanetSpec) -> tuple[int, int]:
    """(before, after): the trunk's frames f0..f1-1 need samples f0·hop - before .. f1·hop + after - 1.

    One frame more is taken in front: mirrored at the end of a clip, the last frame sees further back.
    """
    first, last = -1, 0
    for stride, width in _encoder_strides(spec):
        first, last = spec.conv(2 * width, 2 * stride, stride).needs(first, last)
        for j in reversed(range(spec.residual_layers)):
            first, last = spec.residual(width, j).needs(first, last)
    first, last = spec.conv(1, spec.kernel).needs(first, last)
    return -first, last + 1 - spec.hop_length


def frames_for_samples(spec: SeanetSpec) -> tuple[int, int]:
    """(before, after): the samples of frames f0..f1-1 need the trunk's f0 - before .. f1 + after - 1."""
    first, last = spec.conv(1, spec.last_kernel).needs(0, spec.hop_length - 1)
    width = spec.n_filters
    for stride in reversed(spec.strides):
        for j in reversed(range(spec.residual_layers)):
            first, last = spec.residual(width, j).needs(first, last)
        up = ClipTransposedConv(width, stride, spec.causal, spec.trim_right_ratio)
        first, last = up.needs(first, last)
        width *= 2
    return -first, last


def _encoder_strides(spec: SeanetSpec) -> list[tuple[int, int]]:
    """(stride, width before it) from the last of the encoder to the first."""
    return [(stride, spec.width // 2 ** (i + 1)) for i, stride in enumerate(spec.strides)]
