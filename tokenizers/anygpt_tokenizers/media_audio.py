"""Reading and writing sound files, whatever their rate, channels or defects."""

import os

import librosa
import numpy as np
import soundfile

from anygpt_tokenizers.codec import MediaError

SILENCE = 1e-4  # peak amplitude at or below which a file counts as silent


def read_audio(path: str | os.PathLike, sample_rate: int) -> np.ndarray:
    """Reads a sound file as mono float32 [T] in [-1, 1] at `sample_rate`.

    Channels are averaged, any rate is resampled, and of a truncated file the part that is there is taken.
    Raises MediaError (missing file, empty file, not a sound file, no samples, not finite, silent).
    """
    if not os.path.isfile(path):
        raise MediaError("missing file", path)
    if os.path.getsize(path) == 0:
        raise MediaError("empty file", path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError("not a readable sound file", path, str(error).splitlines()[-1]) from error
    return prepare_audio(samples, rate, sample_rate, path)


def prepare_audio(
    samples: np.ndarray, rate: int, sample_rate: int, path: str | os.PathLike | None = None
) -> np.ndarray:
    """Samples [T, channels] or [T] at `rate` -> mono float32 [T'] at `sample_rate`, or MediaError."""
    wave = np.asarray(samples, np.float32)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if wave.size == 0:
        raise MediaError("no samples", path)
    if not np.isfinite(wave).all():
        raise MediaError("samples that are not finite", path)
    if np.abs(wave).max() <= SILENCE:
        raise MediaError("silent", path)
    if rate != sample_rate:
        wave = librosa.resample(wave, orig_sr=rate, target_sr=sample_rate)
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def write_audio(samples: np.ndarray, path: str | os.PathLike, sample_rate: int) -> None:
    """Writes mono samples [T] in [-1, 1] as a 16-bit file; the kind follows the name (.wav, .flac)."""
    soundfile.write(path, np.clip(np.asarray(samples, np.float32), -1.0, 1.0), sample_rate, subtype="PCM_16")
