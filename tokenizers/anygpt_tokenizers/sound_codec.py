"""What codecs of sound share: their files, and which arrays are sound."""

import os
from collections.abc import Sequence

import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, MediaError
from anygpt_tokenizers.field_kinds import check_kind
from anygpt_tokenizers.media_audio import read_audio, write_audio


class SoundCodec(Codec):
    """A codec of sound; samples are float32 [B, T], or [B, T, channels] where it has several."""

    kind = "audio"
    channels = 1

    def _describe(self, config: dict) -> None:
        super()._describe(config)
        check_kind("sample_rate", config["sample_rate"], int)

    def encode_usable(self, items: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[int, MediaError]]:
        """As `encode_many`, but an unusable clip costs no other: (codes of the rest, what is wrong by index).

        Unusable are clips without samples, with samples that are not finite, or of a wrong shape.
        """
        refused = self._refused(items)
        return self.encode_many([item for i, item in enumerate(items) if i not in refused]), refused

    def read_file(self, path: str | os.PathLike) -> np.ndarray:
        return read_audio(path, self.sample_rate, self.channels)

    def write(self, samples: np.ndarray, path: str | os.PathLike) -> None:
        write_audio(samples, path, self.sample_rate)

    def check_clips(self, items: Sequence[np.ndarray]) -> None:
        """MediaError names the first clip [T] that can't be encoded."""
        for index, error in self._refused(items).items():
            raise MediaError(f"clip {index} of {len(items)}: {error}") from error

    def checked_shape(self, samples: np.ndarray) -> np.ndarray:
        """Samples as float32; UserError if they are not [B, T] with something in it."""
        samples = np.asarray(samples, np.float32)
        wanted = "[batch, time]" if self.channels == 1 else f"[batch, time, {self.channels}]"
        if samples.ndim < 2 or samples.shape[2:] != self._channel_axis or samples.size == 0:
            raise UserError(f"This codec encodes samples of shape {wanted}, not {list(samples.shape)}.")
        return samples

    @property
    def _channel_axis(self) -> tuple[int, ...]:
        """What the shape of samples has after [B, T]."""
        return (self.channels,) if self.channels > 1 else ()

    def _refused(self, items: Sequence[np.ndarray]) -> dict[int, MediaError]:
        """What is wrong with the clips that can't be encoded, by index."""
        wanted = "[time]" if self.channels == 1 else f"[time, {self.channels}]"
        refused = {}
        for index, item in enumerate(items):
            if np.ndim(item) < 1 or np.shape(item)[1:] != self._channel_axis:
                detail = f"{list(np.shape(item))} instead of {wanted}"
                refused[index] = MediaError("samples of a wrong shape", detail=detail)
            elif len(item) == 0:
                refused[index] = MediaError("no samples")
            elif not np.isfinite(item).all():
                refused[index] = MediaError("samples that are not finite")
        return refused


def check_finite(samples: np.ndarray) -> None:
    """UserError names the first of the samples [B, T, …] that is no finite number."""
    finite = np.isfinite(samples)
    if not finite.all():
        row, time = np.argwhere(~finite)[0][:2]
        raise UserError(f"Sample {time} of row {row} is not a finite number.")
