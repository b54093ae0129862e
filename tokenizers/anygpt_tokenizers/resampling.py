"""Changing the rate of sound by torchaudio's rule, piece by piece.

torchaudio's default (`sinc_interp_hann`, width 6, roll-off 0.99), which AnyGPT and the audio codecs it uses
were trained with: a sinc under a Hann window, six zero crossings to either side. Codes depend on it, since
from 0.6 of the lower rate's Nyquist frequency on it is quieter than an ideal filter.
"""

import math

import numpy as np
import scipy.signal

CROSSINGS = 6  # zero crossings of the sinc to either side
ROLLOFF = 0.99  # of the lower rate's Nyquist frequency, where the sinc cuts off


class Resampler:
    """Sound [T, channels] at one rate -> [ceil(T · new / old), channels] at another, in pieces of any size.

    As torchaudio's, sound is zero outside its ends. Taps and sums are float64, where torchaudio's functional
    form has float32 taps; the difference to the formula is the rounding of the result.
    """

    def __init__(self, rate: int, new_rate: int, channels: int):
        divisor = math.gcd(rate, new_rate)
        self._old, self._new = rate // divisor, new_rate // divisor
        old, new = self._old, self._new
        self._reach = math.ceil(CROSSINGS * old / (min(old, new) * ROLLOFF))  # samples to either side
        half = math.ceil(self._reach * new / old)  # new samples; the taps lie 1 / (old · new) apart
        self._taps = _taps(old, new, half * old)
        before = math.ceil(self._reach / old)  # periods of `old` samples kept before those due
        self._skip = before * new + half
        self._before = before * old
        self._samples = np.zeros((self._before, channels))
        self._count = self._made = 0

    def add(self, samples: np.ndarray) -> np.ndarray:
        """The next samples [n, channels] -> float32 [m, channels], what is certain now (m may be 0)."""
        self._count += len(samples)
        return self._advance(samples)

    def finish(self) -> np.ndarray:
        """The sound ends here: the samples [m, channels] still owed."""
        owed = -(-self._count * self._new // self._old) - self._made
        silence = np.zeros((self._reach + self._old, self._samples.shape[1]))
        return self._advance(silence)[:owed]

    def _advance(self, samples: np.ndarray) -> np.ndarray:
        """Whole periods, of `old` samples that become `new`: every one begins with the same phase."""
        self._samples = np.concatenate([self._samples, samples])
        periods = max(0, (len(self._samples) - self._before - self._reach) // self._old)
        count = periods * self._new
        if not count:
            return np.zeros((0, self._samples.shape[1]), np.float32)
        out = scipy.signal.upfirdn(self._taps, self._samples, self._new, self._old, axis=0)
        self._samples = self._samples[periods * self._old :]
        self._made += count
        return out[self._skip : self._skip + count].astype(np.float32)


def _taps(old: int, new: int, half: int) -> np.ndarray:
    """The windowed sinc at -half..half, 1 / (old · new) of a period apart."""
    base = min(old, new) * ROLLOFF
    time = np.minimum(np.arange(half + 1) * (base / (old * new)), CROSSINGS)
    side = np.sinc(time)
    side *= np.cos(time * (np.pi / (2 * CROSSINGS))) ** 2
    side *= base / old
    return np.concatenate([side[:0:-1], side])
