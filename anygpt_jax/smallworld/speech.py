"""Speech of the small world: espeak-ng from the wheel `espeakng-loader`, through ctypes.

espeak-ng keeps the state of its pitch flutter in static variables, so the same sentence sounds a little
different each time, and the noise of its breathing voices is seeded by the clock. Here the library is loaded
afresh for every utterance (a few milliseconds) and given a seed: the wave is a pure function of text, voice,
rate and pitch.
"""

import _ctypes
import ctypes
import dataclasses

import espeakng_loader
import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE = 16_000
_ESPEAK_RATE = 22_050
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: the callback gets the samples, nothing is played
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_CHARS_UTF8 = 1
_SILENCE = 0.01  # of full scale
_PAD_SECONDS = 0.04
_PEAK = 0.7
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclasses.dataclass(frozen=True)
class Voice:
    """An espeak-ng voice with its rate (words per minute) and pitch (0 to 100)."""

    name: str
    rate: int
    pitch: int


VOICES = {
    "adam": Voice("en-us", 175, 50),
    "boris": Voice("en-us+m6", 180, 40),
    "clara": Voice("en-us+f5", 185, 40),
    "robot": Voice("en-us+klatt2", 180, 50),
    "daniel": Voice("en-us+m1", 180, 50),
    "emma": Voice("en-us+f2", 185, 50),
}
HELDOUT_VOICES = ("daniel", "emma")
TRAIN_VOICES = tuple(name for name in VOICES if name not in HELDOUT_VOICES)
_JITTER_RATE, _JITTER_PITCH = 6, 5


def speak(text: str, voice: str, rng: np.random.Generator) -> np.ndarray:
    """The text in a voice of `VOICES`, rate and pitch varied a bit: float32 [samples], 16 kHz, peak 0.7."""
    chosen = VOICES[voice]
    rate = chosen.rate + int(rng.integers(-_JITTER_RATE, _JITTER_RATE + 1))
    pitch = chosen.pitch + int(rng.integers(-_JITTER_PITCH, _JITTER_PITCH + 1))
    wave = synthesise(text, chosen.name, rate, pitch)
    wave = trim(resample_poly(wave, SAMPLE_RATE // 50, _ESPEAK_RATE // 50))
    return (wave * (_PEAK / np.abs(wave).max())).astype(np.float32)


def synthesise(text: str, espeak_voice: str, rate: int, pitch: int) -> np.ndarray:
    """What espeak-ng says, untouched: float32 [samples] at 22,050 Hz; a pure function of the arguments."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[np.ndarray] = []

    @_CALLBACK
    def receive(samples, count, _events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    try:
        sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if sample_rate != _ESPEAK_RATE:
            raise RuntimeError(f"espeak-ng did not start: espeak_Initialize returned {sample_rate}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(receive)
        if library.espeak_SetVoiceByName(espeak_voice.encode()):
            raise RuntimeError(f"espeak-ng has no voice {espeak_voice!r}")
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return np.concatenate(chunks).astype(np.float32) / 32768.0


def trim(wave: np.ndarray) -> np.ndarray:
    """Cuts the silence at both ends of a 16 kHz wave [samples] down to 40 ms."""
    loud = np.flatnonzero(np.abs(wave) > _SILENCE)
    pad = round(_PAD_SECONDS * SAMPLE_RATE)
    return wave[max(0, loud[0] - pad) : loud[-1] + 1 + pad]
