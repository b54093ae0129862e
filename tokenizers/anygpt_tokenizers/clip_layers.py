"""Convolutions that know where a clip begins and ends, on any window of it.

EnCodec and SpeechTokenizer mirror (or zero) the signal at its two ends before every convolution. Here a
layer gets a `Window`: some stretch of a clip, with the clip's true length in every row. Samples outside the
clip are replaced by what the padding would hold there, and the layer returns the part of its output that the
window determines. One rule thus serves whole clips, rows of different lengths in one batch, and long audio
in pieces, all with the same result. Layout is channels-last.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


class Window(NamedTuple):
    """Positions `base + offset` onwards of every row's signal.

    x [B, W, C]: the samples; those outside 0..length-1 may hold anything.
    base: int32 scalar (traced), `offset`: Python int. A layer of stride s divides both by s, so `base` must
      be a multiple of the strides to come.
    length: int32 [B], how long each row's whole signal is; or None if x is the whole signal of every row.
      Then base and offset are 0, and padding costs no look at where the signal ends.
    """

    x: jax.Array
    base: jax.Array | int
    offset: int
    length: jax.Array | None


def with_edges(window: Window, before: int, after: int, stride: int = 1, mode: str = "reflect") -> Window:
    """The window with the padding written where the clip does not reach; around x, if x is the whole clip.

    `before` and `after` count the padding of a clip whose length is a multiple of the stride; others get more
    behind, so that the last window of the convolution is full. A clip too short to be mirrored is lengthened
    with zeros first, as the originals do. Mode: "reflect" or "constant" (zeros).
    """
    if window.length is None:
        x = _whole_with_edges(window.x, before, after + -window.x.shape[1] % stride, mode)
        return window._replace(x=x, offset=-before)
    x, length = window.x, window.length[:, None]
    reach = after + stride - 1
    if before + reach == 0:
        return window
    start = window.base + window.offset
    left = jnp.broadcast_to(jnp.arange(-before, 0), (x.shape[0], before))
    place = jnp.concatenate([left, length + jnp.arange(reach)], axis=1)  # [B, N]
    if mode == "constant":
        value = jnp.zeros((*place.shape, x.shape[-1]), x.dtype)
    else:
        padded = jnp.maximum(before, after + -length % stride)
        extended = jnp.maximum(length, padded + 1)
        source = jnp.where(place < extended, jnp.abs(place), 2 * (extended - 1) - place)
        index = jnp.clip(source - start, 0, x.shape[1] - 1)
        value = jnp.take_along_axis(x, index[..., None], axis=1)
        value = jnp.where(((source >= 0) & (source < length))[..., None], value, 0)
    index = place - start
    index = jnp.where(index < 0, x.shape[1], index)  # a negative index would count from the end
    return window._replace(x=x.at[jnp.arange(x.shape[0])[:, None], index].set(value, mode="drop"))


def _whole_with_edges(x: jax.Array, before: int, after: int, mode: str) -> jax.Array:
    """Whole clips [B, T, C] -> [B, before + T + after, C]."""
    if mode == "constant":
        return jnp.pad(x, ((0, 0), (before, after), (0, 0)))
    size, missing = x.shape[1], max(0, max(before, after) + 1 - x.shape[1])
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
    return jnp.pad(x, ((0, 0), (before, after), (0, 0)), mode="reflect")[:, : before + size + after]


class TimeNorm(nn.Module):
    """Mean 0 and variance 1 over a row's whole clip and all channels, then a scale and a bias per channel.

    EnCodec's "time_group_norm" (Wu and He 2018, one group). The window must hold the whole clip.
    """

    @nn.compact
    def __call__(self, x: jax.Array, inside: jax.Array) -> jax.Array:
        """x [B, W, C], of which the positions where `inside` [B or 1, W] is true belong to the clip."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        inside = inside[..., None]
        count = jnp.maximum(1, jnp.sum(inside, (1, 2), keepdims=True)) * x.shape[-1]
        mean = jnp.sum(jnp.where(inside, x, 0), (1, 2), keepdims=True) / count
        variance = jnp.sum(jnp.where(inside, x - mean, 0) ** 2, (1, 2), keepdims=True) / count
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias


class ClipConv(nn.Module):
    """Convolution of a window: frame t sees samples t·stride - before .. t·stride + kernel - 1 - before.

    A clip of L samples has ceil(L / stride) frames. With `time_norm`, a `TimeNorm` follows.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    mode: str = "reflect"
    time_norm: bool = False

    @property
    def span(self) -> int:
        """Samples from the first to the last that one frame sees."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def before(self) -> int:
        """Samples before its own that frame t sees."""
        total = self.span - self.stride
        return total if self.causal else total - total // 2

    @nn.compact
    def __call__(self, window: Window) -> Window:
        channels = window.x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        after = self.span - self.stride - self.before
        window = with_edges(window, self.before, after, self.stride, self.mode)
        y = _convolve(window.x, kernel, self.stride, self.dilation) + bias
        offset = (window.offset + self.before) // self.stride
        base = window.base // self.stride
        length = None if window.length is None else -(-window.length // self.stride)
        if self.time_norm:
            y = TimeNorm(name="norm")(y, _inside(base + offset, y.shape[1], length))
        return Window(y, base, offset, length)

    @nn.nowrap
    def needs(self, first: int, last: int) -> tuple[int, int]:
        """The first and last sample that frames first..last see."""
        return first * self.stride - self.before, last * self.stride - self.before + self.span - 1


class ClipTransposedConv(nn.Module):
    """Transposed convolution of kernel 2·stride: a clip of T frames gives T·stride samples.

    Of the stride surplus samples, the non-causal form cuts half at either end (the odd one in front), the
    causal form `trim_right` of them behind. With `time_norm`, a `TimeNorm` over all of it comes before.
    """

    features: int
    stride: int
    causal: bool = False
    trim_right_ratio: float = 1.0
    time_norm: bool = False

    @property
    def trim_left(self) -> int:
        """Surplus samples cut in front."""
        right = math.ceil(self.stride * self.trim_right_ratio) if self.causal else self.stride // 2
        return self.stride - right

    @nn.compact
    def __call__(self, window: Window) -> Window:
        window = with_edges(window, 1, 1, mode="constant")
        batch, _, channels = window.x.shape
        span = self.stride * self.features
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=-1)
        kernel = self.param("kernel", init, (channels, 2 * self.stride, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Every frame reaches its own stride of samples and the next one: [B, W, 2 · span].
        product = jnp.matmul(window.x, kernel.reshape(channels, 2 * span), precision=HIGHEST)
        y = (product[:, 1:, :span] + product[:, :-1, span:]).reshape(batch, -1, self.features) + bias
        offset = (window.offset + 1) * self.stride - self.trim_left
        if self.time_norm:
            start = (window.base + window.offset + 1) * self.stride
            length = None if window.length is None else (window.length + 1) * self.stride
            y = TimeNorm(name="norm")(y, _inside(start, y.shape[1], length))
        if window.length is None:
            return Window(y[:, -offset : y.shape[1] - (self.stride + offset)], 0, 0, None)
        return Window(y, window.base * self.stride, offset, window.length * self.stride)

    @nn.nowrap
    def needs(self, first: int, last: int) -> tuple[int, int]:
        """The first and last frame that reach samples first..last."""
        return (first + self.trim_left) // self.stride - 1, (last + self.trim_left) // self.stride


class Activation(nn.Module):
    """ELU, or Snake: x + sin²(a·x) / a with a learnt slope a per channel (Ziyin et al. 2020)."""

    kind: str

    @nn.compact
    def __call__(self, window: Window) -> Window:
        x = window.x
        if self.kind == "ELU":
            return window._replace(x=nn.elu(x))
        slope = self.param("slope", nn.initializers.ones, (x.shape[-1],))
        return window._replace(x=x + jnp.sin(slope * x) ** 2 / (slope + 1e-9))


class ClipResidualBlock(nn.Module):
    """shortcut(x) + narrow convolutions of x; the shortcut is the identity or a convolution of kernel 1."""

    width: int
    kernel: int
    dilation: int
    compress: int
    activation: str
    conv_shortcut: bool
    causal: bool
    mode: str
    time_norm: bool = False

    def setup(self):
        hidden, norm = self.width // self.compress, self.time_norm
        self.act_in, self.act_out = Activation(self.activation), Activation(self.activation)
        self.conv_in = ClipConv(hidden, self.kernel, 1, self.dilation, self.causal, self.mode, norm)
        self.conv_out = ClipConv(self.width, 1, time_norm=norm)
        if self.conv_shortcut:
            self.shortcut = ClipConv(self.width, 1, time_norm=norm)

    def __call__(self, window: Window) -> Window:
        main = self.conv_out(self.act_out(self.conv_in(self.act_in(window))))
        skipped = main.offset - window.offset
        own = window._replace(x=window.x[:, skipped : skipped + main.x.shape[1]], offset=main.offset)
        own = self.shortcut(own) if self.conv_shortcut else own
        return main._replace(x=own.x + main.x)

    @nn.nowrap
    def needs(self, first: int, last: int) -> tuple[int, int]:
        """The first and last sample that samples first..last of the output see."""
        conv = ClipConv(1, self.kernel, 1, self.dilation, self.causal, parent=None)
        return conv.needs(first, last)


def _inside(start: jax.Array, count: int, length: jax.Array | None) -> jax.Array:
    """bool [B, count]: which positions from `start` on are in signals of `length` [B], all if it is None."""
    if length is None:
        return jnp.ones((1, count), bool)
    position = start + jnp.arange(count)
    return (position >= 0) & (position < length[:, None])


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolution without padding: x [B, W, C], kernel [K, C, F] -> [B, ceil((W - span + 1) / stride), F]."""
    if kernel.shape[0] == 1:
        return jnp.matmul(x, kernel[0], precision=HIGHEST)
    dimensions = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", None, (dilation,), dimensions, precision=HIGHEST
    )
