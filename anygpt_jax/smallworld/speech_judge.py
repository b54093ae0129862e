"""Judges speech: pocketsphinx with its English model and a grammar of the small world's sentences."""

import functools

import numpy as np
from pocketsphinx import Decoder
from scipy.signal import resample_poly

from anygpt_jax.smallworld import captions

SAMPLE_RATE = 16_000
_MIN_SECONDS = 0.2
_PAD_SECONDS = 0.25
_PEAK = 0.7
_NOISE = 1e-3  # the recogniser's features are undefined in digital silence


def judge_speech(wave: np.ndarray, sample_rate: int) -> str:
    """What is said in a wave, float [samples]: the likeliest sentence of the world, "" if none is heard."""
    wave = np.asarray(wave, np.float64).reshape(-1)
    if sample_rate != SAMPLE_RATE:
        wave = resample_poly(wave, SAMPLE_RATE, sample_rate)
    peak = np.abs(wave).max(initial=0.0)
    if len(wave) < _MIN_SECONDS * SAMPLE_RATE or peak < 1e-4:
        return ""
    padded = np.pad(wave * (_PEAK / peak), round(_PAD_SECONDS * SAMPLE_RATE))
    padded += _NOISE * np.random.default_rng(0).standard_normal(len(padded))
    samples = (np.clip(padded, -1, 1) * 32767).astype(np.int16)
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""


def grammar() -> str:
    """The sentences of `captions.all_sentences` as a JSGF grammar."""

    def one_of(words):
        return "(" + " | ".join(words) + ")"

    colors, shapes, digits = map(one_of, (captions.COLORS, captions.SHAPES, captions.DIGITS))
    rules = [
        f"a {one_of(captions.SIZES)} {colors} {shapes}",
        f"{one_of(captions.REQUESTS)} a {colors} {shapes}",
        f"(draw | write) the number {digits}",
        f"play a {one_of(captions.TEMPOS)} {one_of(captions.INSTRUMENTS)} tune",
        f"{digits} {digits} {digits}",
    ]
    return "#JSGF V1.0;\ngrammar world;\npublic <sentence> = " + "\n  | ".join(rules) + ";\n"


@functools.cache
def _decoder() -> Decoder:
    # Cepstral means of each utterance on its own ("batch"): the verdict does not depend on what came before.
    decoder = Decoder(lm=None, samprate=SAMPLE_RATE, cmn="batch", loglevel="FATAL")
    decoder.add_jsgf_string("world", grammar())
    decoder.activate_search("world")
    return decoder
