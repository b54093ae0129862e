"""Short-time spectra in JAX: forward, inverse, mel bands, and phases from instantaneous frequencies.

Frame j of hop h is centred on sample j·h + h/2, so a signal of F·h samples has exactly F frames. Phases refer
to the centre of the frame; magnitudes are scaled so that a sinusoid of amplitude a has the peak a. n_fft
is a multiple of twice the hop.
"""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import librosa
import numpy as np


@functools.lru_cache
def hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window, float32 [n_fft]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft(wave: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Complex spectrum [B, T / hop, n_fft / 2 + 1] of wave [B, T]; T is a multiple of the hop."""
    side, overlap, count = (n_fft - hop) // 2, n_fft // hop, wave.shape[1] // hop
    padded = jnp.pad(wave, ((0, 0), (side, n_fft - hop - side)))
    blocks = padded.reshape(wave.shape[0], count + overlap - 1, hop)
    window = (hann(n_fft) * (4 / n_fft)).reshape(overlap, hop)
    # A frame is `overlap` neighbouring blocks, second half first: so phases refer to its centre.
    order = np.roll(np.arange(overlap), overlap // 2)
    return jnp.fft.rfft(jnp.concatenate([blocks[:, i : i + count] * window[i] for i in order], axis=-1))


def frames(wave: jax.Array, size: int, hop: int) -> jax.Array:
    """Stretches [B, F, size] of wave [B, T], `hop` samples apart; what is left at the end is dropped."""
    count, unit = (wave.shape[1] - size) // hop + 1, math.gcd(size, hop)
    stride, last = hop // unit, (count - 1) * (hop // unit)
    blocks = wave[:, : (count - 1) * hop + size].reshape(wave.shape[0], -1, unit)
    # Slices, because the gradient of a gather is slow.
    return jnp.concatenate([blocks[:, i : i + last + 1 : stride] for i in range(size // unit)], axis=-1)


def mirrored(wave: jax.Array, size: int, hop: int) -> jax.Array:
    """Wave [B, T] with mirrored ends, so that it has ceil(T / hop) frames of `size` samples."""
    side = (size - hop) // 2
    wave = jnp.pad(wave, ((0, 0), (side, side)), mode="reflect")
    return jnp.pad(wave, ((0, 0), (0, -(wave.shape[1] - size) % hop)))


def istft(spectrum: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Least-squares inverse of `stft` (Griffin and Lim 1984): [B, F, n_fft / 2 + 1] -> [B, F·hop]."""
    batch, count, _ = spectrum.shape
    frames = jnp.roll(jnp.fft.irfft(spectrum, n_fft), n_fft // 2, axis=-1) * hann(n_fft)
    overlap = n_fft // hop
    energy = np.zeros((count + overlap - 1, hop), np.float32)
    total = jnp.zeros((batch, count + overlap - 1, hop))
    parts = frames.reshape(batch, count, overlap, hop)
    for i in range(overlap):
        total = total.at[:, i : i + count].add(parts[:, :, i])
        energy[i : i + count] += hann(n_fft).reshape(overlap, hop)[i] ** 2
    side = (n_fft - hop) // 2
    scaled = total / (np.maximum(energy, 1e-2) * (4 / n_fft))
    return scaled.reshape(batch, -1)[:, side : side + count * hop]


def nominal_advance(n_fft: int, hop: int) -> np.ndarray:
    """Phase [n_fft / 2 + 1] by which the centre frequency of each bin advances in one hop."""
    return (2 * np.pi * ((np.arange(n_fft // 2 + 1) * hop) % n_fft) / n_fft).astype(np.float32)


def waveform_from_advance(
    magnitude: jax.Array, advance: jax.Array, n_fft: int, hop: int, iterations: int
) -> jax.Array:
    """A waveform [B, F·hop] from magnitudes and phase advances (beyond the nominal ones), both [B, F, bins].

    Phases are the running sum of the advances. Bins that belong to one partial agree on its frequency but not
    yet on its phase; a few iterations of Griffin and Lim's algorithm align them.
    """
    phase = jnp.cumsum(advance + nominal_advance(n_fft, hop), axis=1)

    def improve(_, spectrum):
        consistent = stft(istft(spectrum, n_fft, hop), n_fft, hop)
        return magnitude * consistent / jnp.maximum(jnp.abs(consistent), 1e-8)

    start = magnitude * jax.lax.complex(jnp.cos(phase), jnp.sin(phase))
    return istft(jax.lax.fori_loop(0, iterations, improve, start), n_fft, hop)


@functools.lru_cache
def mel_bands(sample_rate: int, n_fft: int, bands: int) -> np.ndarray:
    """Triangular mel bands [n_fft / 2 + 1, bands], each summing to one, from 40 Hz upwards."""
    bank = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=bands, fmin=40.0, norm=None).T
    return (bank / np.maximum(bank.sum(0), 1e-8)).astype(np.float32)


@functools.lru_cache
def htk_bands(sample_rate: int, n_fft: int, bands: int, lowest: float, equal_area: bool) -> np.ndarray:
    """Triangular bands [n_fft / 2 + 1, bands] on HTK's mel scale, with peaks of one or of equal area."""
    norm = "slaney" if equal_area else None
    with (
        warnings.catch_warnings()
    ):  # short windows leave some of the bands without a bin, as in the originals
        warnings.simplefilter("ignore", UserWarning)
        bank = librosa.filters.mel(
            sr=sample_rate, n_fft=n_fft, n_mels=bands, fmin=lowest, htk=True, norm=norm
        )
    return np.ascontiguousarray(bank.T, np.float32)
