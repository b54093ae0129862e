"""What `published_seanet`'s parts compute together: pure functions of parameters, for whole clips and pieces.

Sound is [B, T], and [B, T, channels] where there are several. The trunks run in blocks of `block` frames
with the context that they need, one after another, so that memory for activations doesn't grow with the
clip. `base` is where a piece begins in its clip, in frames; only its distance to the clip's ends matters, so
callers may move both (see `published_codec.nearby`).
"""

import jax
import jax.numpy as jnp

from anygpt_tokenizers.clip_layers import Window
from anygpt_tokenizers.published_seanet import PublishedSeanet, frames_for_samples, samples_for_frames


def quantize(module: PublishedSeanet, params: dict, latents: jax.Array, first: int, last: int) -> jax.Array:
    """Latents [B, F, D] -> codes int32 [B, F, last - first]; see `ResidualQuantizer.encode`."""
    return module.apply({"params": params}, latents, first, last, method="quantize")


def latents_of_clips(
    module: PublishedSeanet, params: dict, wave: jax.Array, lengths: jax.Array, block: int
) -> jax.Array:
    """Whole clips [B, F·hop_length], F a multiple of `block` -> latents [B, F, dimension]."""
    before, after = samples_for_frames(module.spec)
    wave = _pad_time(wave, before, after)
    x = encoder_frames(module, params, wave, jnp.int32(0), lengths, block)
    frames = -(-lengths // module.spec.hop_length)
    y, _ = module.apply({"params": params}, x, _valid(x, 0, frames), method="encoder_recurrence")
    conv = module.spec.conv(1, module.spec.last_kernel)
    y = _pad_time(jnp.swapaxes(y, 0, 1), conv.before, conv.span - 1 - conv.before)
    return encoder_head(module, params, y, jnp.int32(0), frames)


def decode_clips(
    module: PublishedSeanet, params: dict, codes: jax.Array, frames: jax.Array, first: int, block: int
) -> jax.Array:
    """Whole clips of codes [B, F, n] of `frames` frames, F a multiple of `block` -> [B, F·hop_length]."""
    latents = module.apply({"params": params}, codes, first, method="dequantize")
    wave = decode_latents(module, params, latents, frames, block)
    inside = jnp.arange(wave.shape[1]) < frames[:, None] * module.spec.hop_length
    return jnp.where(inside.reshape(*inside.shape, *(1,) * (wave.ndim - 2)), wave, 0.0)


def decode_latents(
    module: PublishedSeanet, params: dict, latents: jax.Array, frames: jax.Array, block: int
) -> jax.Array:
    """Latents [B, F, D] of clips of `frames` frames, F a multiple of `block` -> [B, F·hop_length]."""
    spec = module.spec
    conv = spec.conv(1, spec.kernel)
    latents = _pad_time(latents, conv.before, conv.span - 1 - conv.before)
    x = decoder_head(module, params, latents, jnp.int32(0), frames)
    y, _ = module.apply({"params": params}, x, _valid(x, 0, frames), method="decoder_recurrence")
    y = _pad_time(jnp.swapaxes(y, 0, 1), *frames_for_samples(spec))
    return decoder_samples(module, params, y, jnp.int32(0), frames, block)


def latents_of_crops(module: PublishedSeanet, params: dict, wave: jax.Array) -> jax.Array:
    """Whole mono clips of one length [B, T] -> latents [B, ceil(T / hop_length), dimension], at once.

    As `latents_of_clips`, for training: with plain padding a gradient is compiled and computed sooner.
    """
    frames = module.apply({"params": params}, Window(wave[..., None], 0, 0, None), method="down")
    x = jnp.swapaxes(frames.x, 0, 1)
    y, _ = module.apply({"params": params}, x, jnp.ones(x.shape[:2], bool), method="encoder_recurrence")
    frames = frames._replace(x=jnp.swapaxes(y, 0, 1))
    return module.apply({"params": params}, frames, method="encoder_head").x


def decode_crops(module: PublishedSeanet, params: dict, latents: jax.Array) -> jax.Array:
    """Latents [B, F, D] of whole mono clips of one length -> [B, F·hop_length]; see `latents_of_crops`."""
    frames = module.apply({"params": params}, Window(latents, 0, 0, None), method="decoder_head")
    x = jnp.swapaxes(frames.x, 0, 1)
    y, _ = module.apply({"params": params}, x, jnp.ones(x.shape[:2], bool), method="decoder_recurrence")
    frames = frames._replace(x=jnp.swapaxes(y, 0, 1))
    return module.apply({"params": params}, frames, method="up").x[..., 0]


def encoder_frames(
    module: PublishedSeanet, params: dict, wave: jax.Array, base: jax.Array, lengths: jax.Array, block: int
) -> jax.Array:
    """Samples of frames base.. with their context [B, before + F·hop + after] -> time-major [F, B, width]."""
    hop, (before, after) = module.spec.hop_length, samples_for_frames(module.spec)
    wave = wave.reshape(*wave.shape[:2], module.spec.channels)

    def one(start: jax.Array) -> jax.Array:
        piece = jax.lax.dynamic_slice_in_dim(wave, start * hop, before + block * hop + after, axis=1)
        window = Window(piece, (base + start) * hop, -before, lengths)
        out = module.apply({"params": params}, window, method="down")
        return jnp.swapaxes(out.x[:, -out.offset :], 0, 1)

    frames = (wave.shape[1] - before - after) // hop
    blocks = _in_blocks(one, frames, block)
    return blocks.reshape(frames, *blocks.shape[2:])


def decoder_samples(
    module: PublishedSeanet, params: dict, y: jax.Array, base: jax.Array, frames: jax.Array, block: int
) -> jax.Array:
    """Frames base.. after the LSTM with their context [B, before + F + after, width] -> [B, F·hop_length]."""
    before, after = frames_for_samples(module.spec)
    size = block * module.spec.hop_length

    def one(start: jax.Array) -> jax.Array:
        piece = jax.lax.dynamic_slice_in_dim(y, start, before + block + after, axis=1)
        out = module.apply({"params": params}, Window(piece, base + start, -before, frames), method="up")
        return out.x[:, -out.offset : size - out.offset]

    count, channels = y.shape[1] - before - after, module.spec.channels
    wave = jnp.swapaxes(_in_blocks(one, count, block), 0, 1).reshape(y.shape[0], -1, channels)
    return wave if channels > 1 else wave[..., 0]


def encoder_head(
    module: PublishedSeanet, params: dict, y: jax.Array, base: jax.Array, frames: jax.Array
) -> jax.Array:
    """Frames base.. with the convolution's context [B, before + F + after, C] -> latents [B, F, D]."""
    before = module.spec.conv(1, module.spec.last_kernel).before
    return module.apply({"params": params}, Window(y, base, -before, frames), method="encoder_head").x


def decoder_head(
    module: PublishedSeanet, params: dict, latents: jax.Array, base: jax.Array, frames: jax.Array
) -> jax.Array:
    """Latents of frames base.. with context [B, before + F + after, D] -> time-major [F, B, width]."""
    before = module.spec.conv(1, module.spec.kernel).before
    out = module.apply({"params": params}, Window(latents, base, -before, frames), method="decoder_head")
    return jnp.swapaxes(out.x, 0, 1)


def _in_blocks(function, frames: int, block: int) -> jax.Array:
    """Stacked results of `function(first frame)` for every block."""
    starts = jnp.arange(0, frames, block)
    return function(starts[0])[None] if len(starts) == 1 else jax.lax.map(function, starts)


def _valid(x: jax.Array, base: jax.Array | int, frames: jax.Array) -> jax.Array:
    """bool [F, B]: which frames of time-major x are inside their clips."""
    return (base + jnp.arange(x.shape[0]))[:, None] < frames


def _pad_time(x: jax.Array, before: int, after: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (before, after), *((0, 0),) * (x.ndim - 2)))
