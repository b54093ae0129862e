"""Reading and writing sound files, whatever their rate, channels or defects."""

import os
from collections.abc import Iterator

import numpy as np
import soundfile

from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.resampling import Resampler

SILENCE = 1e-4  # peak amplitude at or below which a file counts as silent
RATES = 1_000, 1_000_000  # Hz; a header that says something else is damaged
BLOCK = 1 << 18  # samples of all channels that are held at a time


def read_audio(path: str | os.PathLike, sample_rate: int, channels: int = 1) -> np.ndarray:
    """Reads a sound file as float32 [T], or [T, channels] if more than one is asked for, at `sample_rate`.

    Samples are in [-1, 1]. A file with as many channels keeps them; of any other, channels are averaged
    (AnyGPT keeps the first for speech and averages for music; an average loses nobody who speaks into another
    channel). Any rate is resampled (see `resampling`), louder samples are clipped, and of a truncated file
    the part that is there is taken (of FLAC and OGG what is whole: frames, and pages of a second or so).
    Besides the result, memory holds one block, however long the file is or claims to be. Raises MediaError
    (missing file, empty file, not a readable sound file, impossible sample rate, no samples, samples that are
    not finite, silent).
    """
    if not os.path.isfile(path):
        raise MediaError("missing file", path)
    if os.path.getsize(path) == 0:
        raise MediaError("empty file", path)
    try:
        file = soundfile.SoundFile(path)
    except (RuntimeError, TypeError) as error:  # TypeError: a .raw file has no header to read
        raise _unreadable(path, error) from error
    with file:
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise MediaError("impossible sample rate", path, f"{file.samplerate} Hz")
        sound = _Sound(file.samplerate, sample_rate, path, channels)
        for block in _blocks(file, path):
            sound.add(block)
    return sound.finish()


def _blocks(file: soundfile.SoundFile, path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Samples float32 [n, channels] until the file ends or breaks off; MediaError if it does so at once."""
    buffer = np.empty((max(1, BLOCK // file.channels), file.channels), np.float32)
    begun = False
    while True:
        buffer.fill(np.nan)
        try:
            block = file.read(out=buffer)
        except RuntimeError as error:  # what was decoded before is in the buffer, but nothing says how much
            there = np.flatnonzero(~np.isnan(buffer).all(axis=1))
            if not begun and not len(there):
                raise _unreadable(path, error) from error
            yield buffer[: there[-1] + 1 if len(there) else 0]
            return
        if len(block) == 0:
            return
        begun = True
        yield block


def _unreadable(path: str | os.PathLike, error: Exception) -> MediaError:
    return MediaError("not a readable sound file", path, str(error).splitlines()[-1])


def prepare_audio(
    samples: np.ndarray, rate: int, sample_rate: int, path: str | os.PathLike | None = None
) -> np.ndarray:
    """Samples [T, channels] or [T] at `rate` -> mono float32 [T'] at `sample_rate`, or MediaError."""
    samples = np.asarray(samples, np.float32)
    sound = _Sound(rate, sample_rate, path)
    sound.add(samples if samples.ndim == 2 else samples[:, None])
    return sound.finish()


class _Sound:
    """Sound at one rate, from blocks [T, channels] at another; averaged unless it has as many as wanted."""

    def __init__(self, rate: int, sample_rate: int, path: str | os.PathLike | None, channels: int = 1):
        self._path, self._channels = path, channels
        self._resampler = None if rate == sample_rate else Resampler(rate, sample_rate, channels)
        self._samples, self._count, self._peak = bytearray(), 0, 0.0

    def add(self, block: np.ndarray) -> None:
        """The next samples."""
        if block.shape[1] != self._channels:
            block = block.mean(axis=1, keepdims=True).repeat(self._channels, 1)
        if not np.isfinite(block).all():
            raise MediaError("samples that are not finite", self._path)
        self._peak = max(self._peak, float(np.abs(block).max(initial=0.0)))
        self._count += len(block)
        self._keep(self._resampler.add(block) if self._resampler else block)

    def finish(self) -> np.ndarray:
        """Everything, float32 [ceil(T · new rate / old rate)] or [that, channels]."""
        if self._count == 0:
            raise MediaError("no samples", self._path)
        if self._peak <= SILENCE:
            raise MediaError("silent", self._path)
        if self._resampler:
            self._keep(self._resampler.finish())
        samples = np.frombuffer(self._samples, np.float32)
        return samples if self._channels == 1 else samples.reshape(-1, self._channels)

    def _keep(self, samples: np.ndarray) -> None:
        self._samples += np.clip(samples, -1.0, 1.0).astype(np.float32).tobytes()


def write_audio(samples: np.ndarray, path: str | os.PathLike, sample_rate: int) -> None:
    """Writes samples [T] or [T, channels] in [-1, 1] as a 16-bit file of the name's kind (.wav, .flac)."""
    soundfile.write(path, np.clip(np.asarray(samples, np.float32), -1.0, 1.0), sample_rate, subtype="PCM_16")
