"""Audio that is too long for one program, and audio that is still being made: piece by piece, same result.

Convolutions get the samples around a piece that they need; the LSTM's state is carried from piece to piece
(for the backward direction from the last piece to the first). On the devices, memory is bounded by the piece.
"""

import tempfile
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import published_programs as programs
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.published_seanet import PublishedSeanet, frames_for_samples, samples_for_frames

if TYPE_CHECKING:
    from anygpt_tokenizers.published_codec import PublishedCodec

SCRATCH_IN_MEMORY = 1 << 30  # bytes; larger intermediate arrays lie in a temporary file
FAR = 64  # frames from the start of a clip beyond which the start makes no difference to a piece
OPEN_END = 1 << 40  # frames of a clip whose end isn't known yet
MOST_FRAMES = 1 << 20  # of a length that a program is told; positions in samples must fit int32


def encode_long(
    codec: "PublishedCodec",
    wave: np.ndarray,
    lengths: np.ndarray,
    piece: int,
    block: int,
    first: int | None,
    last: int | None,
) -> np.ndarray:
    """Clips [B, T] of `lengths` samples -> codes [B, F, last - first], or latents where `first` is None.

    Besides the waveform, the host keeps about 20 · width bytes per frame of features, in a temporary file
    when they are many.
    """
    hop = codec.hop_length
    starts = range(0, -(-wave.shape[1] // hop), piece)
    x = _scratch((len(starts) * piece, len(wave), codec.spec.width))
    trunk = codec.program(programs.encoder_frames, block)
    before, after = samples_for_frames(codec.spec)
    for start in starts:
        samples = _stretch(wave, start * hop - before, (start + piece) * hop + after)
        near, near_lengths = nearby(start, lengths, hop)
        x[start : start + piece] = trunk(codec.place(samples), near, codec.place(near_lengths))
    y = x
    frames = -(-lengths // hop)
    for layer in range(codec.spec.lstm_layers):
        y = _recur(codec, y, frames, layer, piece)
    conv = codec.spec.conv(1, codec.spec.last_kernel)
    head = codec.program(_head)
    out = []
    for start in starts:
        reach = start - conv.before, start + piece + conv.span - 1 - conv.before
        near, near_frames = nearby(start, frames, 1)
        around_x, around_y = (np.swapaxes(_stretch(a, *reach, axis=0), 0, 1) for a in (x, y))
        inputs = codec.place(around_x), codec.place(around_y)
        latents = head(*inputs, near, codec.place(near_frames))
        codes = latents if first is None else codec.program(programs.quantize, first, last)(latents)
        out.append(np.asarray(codes))
    return np.concatenate(out, axis=1)


class StreamDecoder:
    """Decodes codes as they come: joined, what `push` and `finish` return is what decoding at once gives.

    A frame is put out as soon as no later one can change it: 4 frames later for SpeechTokenizer and EnCodec
    at 32 kHz, at once for the causal EnCodec at 24 kHz (but for its first 7 frames, because the clip's start
    is mirrored).

    Attributes:
      codec: whose weights decode.
      seen: frames pushed so far.
    """

    def __init__(
        self,
        codec: "PublishedCodec",
        batch: int = 1,
        step: int = 10,
        first: int = 0,
        block: int | None = None,
        lengths: np.ndarray | None = None,
    ):
        """Args:
        codec: with the weights.
        batch: streams that run side by side, with the same number of frames each.
        step: frames that a program decodes at most; more are decoded step by step.
        first: level of the first code of a frame.
        block: frames that the convolutions take at a time; `step` must be a multiple.
        lengths: [batch], where each row ends, if that is known beforehand.

        UserError: a codec that can't be streamed, a block that doesn't divide the step, impossible lengths.
        """
        self.codec = codec
        self.seen = 0
        self._lengths = _stream_lengths(lengths, batch)
        self._ended = False
        self._first = first
        self._levels: int | None = None  # of a frame; the first codes tell
        spec = codec.spec
        if spec.time_group_norm:
            raise UserError("This codec normalises over whole clips (time_group_norm): it can't be streamed.")
        self._channel_axis = (spec.channels,) if spec.channels > 1 else ()
        conv = spec.conv(1, spec.kernel)
        self._step = max(step, conv.before + 1)  # what the clip's start is mirrored from must be in one piece
        block = self._step if block is None else block
        if block < 1 or self._step % block:
            raise UserError(f"A stream's block must divide its step of {self._step} frames; {block} doesn't.")
        self._around_frame = conv.before, conv.span - 1 - conv.before
        self._around_samples = frames_for_samples(spec)
        self._codes = _Tail(self._around_frame[0])
        self._features = _Tail(self._around_samples[0])
        zeros = np.zeros((batch, spec.width), np.float32)
        self._carries = [(codec.place(zeros), codec.place(zeros)) for _ in range(spec.lstm_layers)]
        self._recur = codec.program(_decoder_step, first)
        self._sound = codec.program(programs.decoder_samples, block)

    def push(self, codes: np.ndarray) -> np.ndarray:
        """int32 codes [B, n, levels] -> float32 [B, m], the samples that are certain now (m may be 0).

        UserError names codes that are not the codec's, with their place in the stream, and changes nothing.
        """
        if self._ended:
            raise UserError("This stream was finished; begin another for more codes.")
        codes = self.codec.check_codes(codes, self._first, self.seen)
        rows, levels = len(self._lengths), self._levels or codes.shape[2]
        if codes.shape != (rows, codes.shape[1], levels):
            raise UserError(
                f"This stream goes on at frame {self.seen} with codes of shape [{rows}, frames, {levels}], "
                f"not {list(codes.shape)}."
            )
        self._levels = levels
        self._codes.append(codes)
        self.seen += codes.shape[1]
        return self._advance()

    def finish(self) -> np.ndarray:
        """The clip ends here: the samples [B, m] still owed."""
        self._ended = True
        self._lengths = np.minimum(self._lengths, self.seen)
        return self._advance()

    def _advance(self) -> np.ndarray:
        before, after = self._around_frame
        ready = self.seen if self._ended else self.seen - after if self.seen > before else 0
        pieces = [np.zeros((len(self._lengths), 0, *self._channel_axis), np.float32)]
        while self._codes.done < ready:
            self._take_frames(min(self._step, ready - self._codes.done))
        certain = self._features.end - (0 if self._ended else self._around_samples[1])
        while self._features.done < certain:
            pieces.append(self._take_samples(min(self._step, certain - self._features.done)))
        return np.concatenate(pieces, axis=1)

    def _take_frames(self, count: int) -> None:
        """Brings `count` more frames through the LSTM."""
        place, start = self.codec.place, self._codes.done
        window = self._codes.around(start, self._step, *self._around_frame)
        near, lengths = nearby(start, self._lengths, 1)
        y, self._carries = self._recur(place(window), near, place(lengths), np.int32(count), self._carries)
        self._codes.advance(count)
        self._features.append(np.asarray(y)[:, :count])

    def _take_samples(self, count: int) -> np.ndarray:
        """The samples [B, count · hop_length] of the next `count` frames."""
        place, start = self.codec.place, self._features.done
        window = self._features.around(start, self._step, *self._around_samples)
        near, lengths = nearby(start, self._lengths, 1)
        wave = np.asarray(self._sound(place(window), near, place(lengths)))
        self._features.advance(count)
        return wave[:, : count * self.codec.hop_length]


def _stream_lengths(lengths: np.ndarray | None, batch: int) -> np.ndarray:
    """`lengths` [batch] in frames, open ends where there are none; UserError if they are impossible."""
    lengths = np.full(batch, OPEN_END) if lengths is None else np.asarray(lengths)
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise UserError(f"`lengths` are {batch} whole numbers of frames from 1 on, not {lengths.tolist()}.")
    return lengths.astype(np.int64)


def nearby(start: int, lengths: np.ndarray, unit: int) -> tuple[np.int32, np.ndarray]:
    """(start in frames, lengths [B] in units of `unit` per frame), moved together to small numbers.

    A program needs them only to find the clip's start and end, and int32 positions must not overflow.
    """
    near = min(start, FAR)
    moved = np.asarray(lengths, np.int64) - (start - near) * unit
    return np.int32(near), np.clip(moved, 0, MOST_FRAMES * unit).astype(np.int32)


class _Tail:
    """The last rows [B, n, ...] of a growing sequence; `done` of them are dealt with."""

    def __init__(self, keep: int):
        self.done = 0
        self._keep = keep
        self._start = 0
        self._rows: np.ndarray | None = None

    @property
    def end(self) -> int:
        """How long the sequence is so far."""
        return self._start + (0 if self._rows is None else self._rows.shape[1])

    def append(self, rows: np.ndarray) -> None:
        """Lengthens the sequence."""
        self._rows = rows if self._rows is None else np.concatenate([self._rows, rows], axis=1)

    def around(self, start: int, count: int, before: int, after: int) -> np.ndarray:
        """Rows start - before .. start + count + after - 1, zeros where there are none."""
        return _stretch(self._rows, start - before - self._start, start + count + after - self._start)

    def advance(self, count: int) -> None:
        """Notes that `count` more are dealt with, and forgets what isn't needed any more."""
        self.done += count
        drop = max(0, self.done - self._keep - self._start)
        self._rows, self._start = self._rows[:, drop:], self._start + drop


def _recur(codec: "PublishedCodec", x: np.ndarray, frames: np.ndarray, layer: int, piece: int) -> np.ndarray:
    """One LSTM layer of the encoder over x [F, B, C], all directions, piece by piece."""
    width = codec.spec.width
    directions = (False, True) if codec.spec.bidirectional else (False,)
    y = _scratch((*x.shape[:2], width * len(directions)))
    for side, reverse in enumerate(directions):
        program = codec.program(_direction, layer, reverse)
        carry = (codec.place(np.zeros((x.shape[1], width), np.float32)),) * 2
        starts = range(0, len(x), piece)
        for start in reversed(starts) if reverse else starts:
            near, near_frames = nearby(start, frames, 1)
            rows = codec.place(np.swapaxes(x[start : start + piece], 0, 1))
            out, carry = program(rows, near, codec.place(near_frames), carry)
            y[start : start + piece, :, side * width : (side + 1) * width] = out
    return y


def _direction(module: PublishedSeanet, params: dict, x, base, frames, carry, layer: int, reverse: bool):
    """x [B, F, C] -> (outputs [F, B, H], carry)."""
    x = jnp.swapaxes(x, 0, 1)
    valid = (base + jnp.arange(len(x)))[:, None] < frames
    return module.apply({"params": params}, layer, reverse, x, valid, carry, method="encoder_direction")


def _head(module: PublishedSeanet, params: dict, x, y, base, frames):
    """The encoder's LSTM's inputs x and outputs y [B, F, C], with context -> latents [B, F, D]."""
    y = module.apply({"params": params}, x, y, method="encoder_skip")
    return programs.encoder_head(module, params, y, base, frames)


def _decoder_step(module: PublishedSeanet, params: dict, codes, base, frames, count, carries, first: int):
    """Codes with context -> (frames after the LSTM [B, F, width], its state after `count` of them)."""
    latents = module.apply({"params": params}, codes, first, method="dequantize")
    x = programs.decoder_head(module, params, latents, base, frames)
    valid = jnp.broadcast_to(jnp.arange(len(x))[:, None] < count, x.shape[:2])
    y, carries = module.apply({"params": params}, x, valid, carries, method="decoder_recurrence")
    return jnp.swapaxes(y, 0, 1), carries


def _stretch(array: np.ndarray, start: int, stop: int, axis: int = 1) -> np.ndarray:
    """Positions start..stop-1 along an axis, zeros outside the array."""
    size = array.shape[axis]
    low, high = min(max(start, 0), size), min(max(stop, 0), size)
    padding = [(0, 0)] * array.ndim
    padding[axis] = max(0, min(stop, 0) - start), max(0, stop - max(start, size))
    return np.pad(array[(slice(None),) * axis + (slice(low, high),)], padding)


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros float32; on disk when they are many, and gone when nobody holds the array any more."""
    if 4 * np.prod(shape, dtype=np.int64) <= SCRATCH_IN_MEMORY:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
