"""Music of the small world: two seconds of a melody over a soft triad, from a NumPy synthesiser."""

import math

import numpy as np
from scipy.signal import butter, sosfilt

from anygpt_jax.smallworld import captions

SAMPLE_RATE = 16_000
SECONDS = 2.0
SAMPLES = round(SECONDS * SAMPLE_RATE)
NOTES_PER_SECOND = {"slow": 2.0, "medium": 4.0, "fast": 7.0}
# Semitones above the tonic.
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
TONICS = {
    "C": 60,
    "D": 62,
    "F": 65,
    "G": 67,
}  # MIDI notes of the triad's root; the melody is an octave higher
_LEAPS = {"slow": (2, 3), "medium": (1, 2), "fast": (1,)}  # scale steps from note to note
_JITTER_TEMPO = 0.03
_PAD_LEVEL, _PEAK = 0.16, 0.7
_NYQUIST_MARGIN = 7_600.0  # no partial above this frequency, Hz


def render(attributes: captions.Attributes, rng: np.random.Generator) -> np.ndarray:
    """One piece with the attributes tempo, contour, instrument, mode: float32 [32000] at 16 kHz, peak 0.7."""
    root = int(rng.choice(list(TONICS.values())))
    rate = NOTES_PER_SECOND[attributes["tempo"]] * rng.uniform(1 - _JITTER_TEMPO, 1 + _JITTER_TEMPO)
    melody = np.zeros(SAMPLES)
    starts = np.arange(0, SECONDS - 0.05, 1 / rate)
    for start, note in zip(starts, _melody(attributes, len(starts), root + 12, rng), strict=True):
        begin = round(start * SAMPLE_RATE)
        length = min(round(SAMPLE_RATE / rate), SAMPLES - begin)
        tone = play_note(attributes["instrument"], frequency(note), length, rng)
        melody[begin : begin + length] += tone * rng.uniform(0.9, 1.0)
    piece = melody + _PAD_LEVEL * _pad([root + step for step in TRIADS[attributes["mode"]]])
    return (piece * (_PEAK / np.abs(piece).max())).astype(np.float32)


def frequency(note: float) -> float:
    """Hertz of a MIDI note in equal temperament, A4 = 69 = 440 Hz."""
    return 440.0 * 2 ** ((note - 69) / 12)


def _melody(attributes, count, tonic, rng) -> list[int]:
    """MIDI notes of `count` scale steps that only rise or only fall."""
    leaps = rng.choice(_LEAPS[attributes["tempo"]], count - 1)
    degrees = np.concatenate([[0], np.cumsum(leaps)])
    if attributes["contour"] == "falling":
        degrees = degrees[::-1]
    scale = SCALES[attributes["mode"]]
    return [tonic + 12 * (degree // 7) + scale[degree % 7] for degree in degrees]


def _pad(notes: list[int]) -> np.ndarray:
    """A sustained chord of near-sines that swells in 60 ms: [samples], each tone about 1 high."""
    time = np.arange(SAMPLES) / SAMPLE_RATE
    chord = sum(
        np.sin(2 * math.pi * frequency(note) * time) + 0.2 * np.sin(4 * math.pi * frequency(note) * time)
        for note in notes
    )
    return chord * np.minimum(1, time / 0.06) * np.minimum(1, (SECONDS - time) / 0.06)


def play_note(instrument: str, pitch: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """One note of `pitch` Hz, `length` samples, at most about 1 high: [length]."""
    time = np.arange(length) / SAMPLE_RATE
    tone = {"piano": _piano, "organ": _organ, "flute": _flute, "guitar": _guitar}[instrument](
        time, pitch, rng
    )
    release = np.minimum(1, (length - np.arange(length)) / (0.008 * SAMPLE_RATE))
    return tone * release


def _partials(time, pitch, levels, decays=None):
    """A sum of harmonics: `levels[n]` is the level of harmonic n + 1, `decays[n]` its decay in 1/s."""
    decays = np.zeros(len(levels)) if decays is None else decays
    tone = np.zeros(len(time))
    for number, (level, decay) in enumerate(zip(levels, decays, strict=True), start=1):
        if level and number * pitch < _NYQUIST_MARGIN:
            tone += level * np.exp(-decay * time) * np.sin(2 * math.pi * number * pitch * time)
    return tone / np.sum(np.abs(levels))


def _piano(time, pitch, rng):
    """Struck: a fast attack, few partials, a slow decay that is faster for high partials."""
    numbers = np.arange(1, 6)
    return 1.5 * _partials(time, pitch, numbers**-1.6, 2.0 + 1.5 * numbers) * np.minimum(1, time / 0.006)


def _organ(time, pitch, rng):
    """Drawbars: octaves as strong as the fundamental, no decay at all."""
    return _partials(time, pitch, np.array([1.0, 0.9, 0.35, 0.8, 0, 0.3, 0, 0.5])) * np.minimum(
        1, time / 0.012
    )


def _flute(time, pitch, rng):
    """Blown: almost a sine, a soft attack, vibrato, and breath."""
    vibrato = 0.004 * pitch / 5.5 * np.sin(2 * math.pi * 5.5 * time)
    tone = np.sin(2 * math.pi * (pitch * time + vibrato)) + 0.08 * np.sin(4 * math.pi * pitch * time)
    breath = sosfilt(_BREATH, rng.standard_normal(len(time)))
    return (0.8 * tone + 0.15 * breath) * np.minimum(1, time / 0.04)


def _guitar(time, pitch, rng):
    """Plucked: bright partials with the comb of a plucking point, a click, a fast decay."""
    numbers = np.arange(1, 13)
    levels = np.abs(np.sin(math.pi * numbers * 0.22)) / numbers**0.5
    click = 0.3 * rng.standard_normal(len(time)) * np.exp(-time / 0.004)
    return 2.2 * _partials(time, pitch, levels, 5.0 + 2.0 * numbers) * np.minimum(1, time / 0.002) + click


_BREATH = butter(2, (2_000, 6_000), btype="bandpass", fs=SAMPLE_RATE, output="sos")
