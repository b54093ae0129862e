"""EnCodec's chunks and loudness: how a clip is cut, and how decoded chunks become one sound again.

The 48 kHz model (Défossez et al. 2022) takes a clip in chunks of a second that overlap by a hundredth of it,
each divided by its loudness, and fades from one decoded chunk to the next. The rules are those of
transformers' EncodecModel, for clips of any length.
"""

import math
from typing import NamedTuple

import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.field_kinds import check_kind, is_number


class Chunking(NamedTuple):
    """Chunks of `length` samples, one every `stride`; the last end with the clip. `hop`: of a frame."""

    length: int
    stride: int
    hop: int

    def places(self, samples: int) -> list[tuple[int, int]]:
        """(start, end) of a clip's chunks."""
        return [(start, min(start + self.length, samples)) for start in range(0, samples, self.stride)]

    def frames(self, samples: int) -> np.ndarray:
        """int [n] frames of a clip's chunks."""
        ends = np.diff(self.places(samples), axis=1)[:, 0]
        return -(-ends // self.hop)

    def split(self, total: int, count: int) -> np.ndarray:
        """int [count] frames of the chunks of a clip that has `total` frames in `count` chunks.

        A longer clip of as many chunks has no chunk with fewer frames, so there is one answer. UserError if
        no clip has that many.
        """
        low, high = (count - 1) * self.stride + 1, count * self.stride
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.frames(middle).sum() >= total else (middle + 1, high)
        frames = self.frames(low)
        if frames.sum() != total:
            raise UserError(f"No clip has {total} frames in {count} chunks: codes and scales don't match.")
        return frames


def check_scaling(config: dict, rate: int) -> None:
    """UserError if normalize, chunk_length_s or overlap is of another kind, or the two make no chunks."""
    seconds, overlap = config.get("chunk_length_s"), config.get("overlap")
    check_kind("normalize", config.get("normalize", False), bool)
    for name, value in (("chunk_length_s", seconds), ("overlap", overlap)):
        if value is not None and not is_number(value):
            raise UserError(f"{name} is {value!r}; it must be a number or null.")
    if seconds is None:
        return
    if int(seconds * rate) < 1:
        raise UserError(f"chunk_length_s is {seconds!r}; a chunk has at least one sample.")
    if overlap is None or not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap!r}; with chunk_length_s it is a share from 0 up to 1.")


def chunking_of(config: dict, hop: int) -> Chunking | None:
    """The chunks that a codec's config asks for, or None."""
    if config.get("chunk_length_s") is None:
        return None
    length = int(config["chunk_length_s"] * config["sample_rate"])
    return Chunking(length, max(1, int((1.0 - config["overlap"]) * length)), hop)


def loudness(samples: np.ndarray) -> np.float32:
    """Root mean square of the mean of the channels of [T] or [T, channels], and a little more than 0."""
    mono = samples.astype(np.float64).reshape(len(samples), -1).mean(1)
    return np.float32(math.sqrt(np.mean(mono**2)) + 1e-8)


def overlap_add(chunks: list[np.ndarray], stride: int) -> np.ndarray:
    """Decoded chunks [T] or [T, channels], one every `stride` samples -> one sound.

    Each is weighted by a triangle over the first one's length, highest in its middle, so that two fade into
    each other; the weights are divided out again.
    """
    total = max(i * stride + len(chunk) for i, chunk in enumerate(chunks))
    time = np.linspace(0, 1, len(chunks[0]) + 2, dtype=np.float32)[1:-1]
    triangle = np.float32(0.5) - np.abs(time - np.float32(0.5))
    triangle = triangle.reshape(-1, *(1,) * (chunks[0].ndim - 1))
    sound = np.zeros((total, *chunks[0].shape[1:]), np.float32)
    weight = np.zeros((total, *triangle.shape[1:]), np.float32)
    for i, chunk in enumerate(chunks):
        at = slice(i * stride, i * stride + len(chunk))
        sound[at] += triangle[: len(chunk)] * chunk
        weight[at] += triangle[: len(chunk)]
    return sound / weight
