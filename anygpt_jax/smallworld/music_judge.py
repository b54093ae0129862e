"""Judges music: librosa finds onsets, pitches and chords; a scikit-learn classifier hears the instrument."""

import functools

import librosa
import numpy as np
from scipy.signal import butter, sosfilt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from anygpt_jax.smallworld import captions, music

SAMPLE_RATE = music.SAMPLE_RATE
_HOP = 160  # 10 ms
_WINDOW = 1024
_MIN_SECONDS = 0.5
# Boundaries between the world's 2, 4 and 7 notes a second.
_MEDIUM_FROM, _FAST_FROM = 3.0, 5.4
_MELODY_SEMITONES = 40  # the melody's range, upwards from C5
_CHORD_WINDOW = 4096
_RENDERS = 3  # pieces per training caption that the instrument classifier is fitted on


# These matrices are tiny: BLAS threads that wait for a busy core cost ten times what they save.
@threadpool_limits.wrap(limits=1, user_api="blas")
def judge_music(wave: np.ndarray, sample_rate: int) -> captions.Attributes:
    """Tempo, contour, instrument and mode of a wave, float [samples]; {"kind": "unknown"} for silence."""
    wave = np.asarray(wave, np.float32).reshape(-1)
    if sample_rate != SAMPLE_RATE:
        wave = librosa.resample(wave, orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    peak = np.abs(wave).max(initial=0.0)
    if len(wave) < _MIN_SECONDS * SAMPLE_RATE or peak < 1e-4:
        return {"kind": "unknown"}
    wave = wave / peak
    return {
        "kind": "music",
        "tempo": judge_tempo(wave),
        "contour": judge_contour(wave),
        "instrument": str(_instrument_classifier().predict([_timbre(wave)])[0]),
        "mode": judge_mode(wave),
    }


def judge_tempo(wave: np.ndarray) -> str:
    """Slow, medium or fast by the number of onsets a second; wave [samples] at 16 kHz, peak 1."""
    strength = librosa.onset.onset_strength(y=wave, sr=SAMPLE_RATE, hop_length=_HOP, n_mels=64)
    onsets = librosa.onset.onset_detect(
        onset_envelope=strength,
        sr=SAMPLE_RATE,
        hop_length=_HOP,
        pre_avg=10,
        post_avg=10,
        pre_max=4,
        post_max=4,
        wait=6,
        delta=0.07,
    )
    rate = len(onsets) / (len(wave) / SAMPLE_RATE)
    if rate < _MEDIUM_FROM:
        return "slow"
    return "medium" if rate < _FAST_FROM else "fast"


def judge_contour(wave: np.ndarray) -> str:
    """Rising or falling by the trend of the melody's mean pitch; wave [samples] at 16 kHz, peak 1."""
    pitches = librosa.cqt(
        wave,
        sr=SAMPLE_RATE,
        hop_length=2 * _HOP,
        fmin=librosa.note_to_hz("C5"),
        n_bins=_MELODY_SEMITONES,
        tuning=0.0,
    )
    power = np.abs(pitches)
    power = np.maximum(power - np.median(power, axis=1, keepdims=True), 0) ** 2  # without the sustained chord
    total = power.sum(axis=0)
    mean_pitch = (power * np.arange(len(power))[:, None]).sum(axis=0) / (total + 1e-9)
    slope = np.polyfit(np.arange(len(total)), mean_pitch, 1, w=total**0.25)[0]
    return "rising" if slope > 0 else "falling"


def judge_mode(wave: np.ndarray) -> str:
    """Major or minor by the most present of the world's eight triads; wave [samples] at 16 kHz, peak 1."""
    spectrum = np.abs(librosa.stft(wave, n_fft=_CHORD_WINDOW, hop_length=_CHORD_WINDOW // 4))
    sustained = np.sqrt(np.median(spectrum, axis=1))
    bin_width = SAMPLE_RATE / _CHORD_WINDOW

    def presence(note: int) -> float:
        center = round(music.frequency(note) / bin_width)
        return sustained[center - 1 : center + 2].max()

    def triad_presence(mode: str, root: int) -> float:
        tones = [presence(root + step) for step in music.TRIADS[mode]]
        return float(np.mean(tones) + np.min(tones))

    return max(
        captions.MODES, key=lambda mode: max(triad_presence(mode, root) for root in music.TONICS.values())
    )


def _timbre(wave: np.ndarray) -> np.ndarray:
    """What the notes sound like, whatever their pitch: the spectrum's shape and how it fades, [51]."""
    spectrum = np.abs(librosa.stft(wave, n_fft=_WINDOW, hop_length=2 * _HOP))
    mel = librosa.feature.melspectrogram(S=spectrum**2, sr=SAMPLE_RATE, n_mels=40)
    cepstrum = librosa.feature.mfcc(S=librosa.power_to_db(mel, ref=np.max, top_db=60), n_mfcc=14)
    flatness = np.log(librosa.feature.spectral_flatness(S=spectrum) + 1e-8)
    rolloff = librosa.feature.spectral_rolloff(S=spectrum, sr=SAMPLE_RATE) / 1000
    loudness = np.log(librosa.feature.rms(S=spectrum, frame_length=_WINDOW)[0] + 1e-3)
    change = np.diff(loudness)
    motion = np.abs(np.diff(cepstrum)).mean(axis=1)
    statistics = [flatness.mean(), flatness.std(), rolloff.mean(), rolloff.std(), loudness.std()]
    fading = [change.std(), change.max(), change.min(), np.median(change)]
    return np.concatenate([cepstrum.mean(axis=1), cepstrum.std(axis=1), motion, statistics, fading])


@functools.cache
def _instrument_classifier() -> Pipeline:
    """Fitted on pieces of the training captions, each clean and once noisy and dull as codecs make it."""
    rng = np.random.default_rng(0)
    features, names = [], []
    for attributes in captions.of_split("music", "train"):
        for _ in range(_RENDERS):
            clean = music.render(attributes, rng)
            noisy = clean + 10 ** rng.uniform(-3, -1.7) * rng.standard_normal(len(clean))
            lowpass = butter(2, rng.uniform(2_500, 7_500), fs=SAMPLE_RATE, output="sos")
            for wave in (clean, sosfilt(lowpass, noisy)):
                features.append(_timbre((wave / np.abs(wave).max()).astype(np.float32)))
                names.append(attributes["instrument"])
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, names)
