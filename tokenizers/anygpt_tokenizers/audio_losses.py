"""How far a reconstruction of sound is from the original: spectra, mel bands, phase advances, SI-SDR."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import spectral


def log_amplitude(magnitude: jax.Array, floor: float) -> jax.Array:
    """log(magnitude + floor): what magnitudes are compared as and what the encoder sees."""
    return jnp.log(magnitude + floor)


def log_mel(magnitude: jax.Array, sample_rate: int, bands: int, floor: float) -> jax.Array:
    """Log-amplitudes [B, F, bands] of the mel bands of a magnitude spectrum [B, F, n_fft / 2 + 1]."""
    n_fft = 2 * (magnitude.shape[-1] - 1)
    return log_amplitude(magnitude @ spectral.mel_bands(sample_rate, n_fft, bands), floor)


def mel_distance(wave: np.ndarray, target: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of two waves' [T] log-amplitudes in 80 mel bands (windows of 1,280)."""
    mels = [
        log_mel(jnp.abs(spectral.stft(x[None], 1280, 160)), sample_rate, 80, 1e-3) for x in (wave, target)
    ]
    return float(jnp.mean(jnp.abs(mels[0] - mels[1])))


def magnitude_losses(
    magnitude: jax.Array, target: jax.Array, sample_rate: int, bands: int, floor: float
) -> dict[str, jax.Array]:
    """Distances of magnitude spectra [B, F, bins].

    "log" and "mel": mean absolute difference of log-amplitudes per bin and per mel band. "log_squared": mean
    squared difference per bin; unlike the absolute one, whose best guess is a median, it rewards an
    uncertain peak. "linear": sum of absolute differences over the sum of the target; "convergence": the
    same with root-sum-squares (Yamamoto et al. 2020).
    """
    mel, target_mel = (log_mel(x, sample_rate, bands, floor) for x in (magnitude, target))
    log_difference = log_amplitude(magnitude, floor) - log_amplitude(target, floor)
    squares = jnp.sum((magnitude - target) ** 2), jnp.sum(target**2)
    return {
        "log": jnp.mean(jnp.abs(log_difference)),
        "log_squared": jnp.mean(log_difference**2),
        "mel": jnp.mean(jnp.abs(mel - target_mel)),
        "linear": jnp.sum(jnp.abs(magnitude - target)) / (jnp.sum(target) + 1e-3),
        "convergence": jnp.sqrt(squares[0] / (squares[1] + 1e-3) + 1e-8),
    }


def multi_resolution_losses(
    wave: jax.Array, target: jax.Array, sample_rate: int, bands: int, floor: float, sizes: Sequence[int]
) -> dict[str, jax.Array]:
    """`magnitude_losses` between waveforms [B, T], averaged over STFTs of several sizes (hop = size / 4)."""
    totals: dict[str, jax.Array] = {}
    for size in sizes:
        length = wave.shape[1] // (size // 4) * (size // 4)
        spectra = [jnp.abs(spectral.stft(x[:, :length], size, size // 4) + 1e-9) for x in (wave, target)]
        for name, value in magnitude_losses(*spectra, sample_rate, bands, floor).items():
            totals[name] = totals.get(name, 0.0) + value / len(sizes)
    return totals


def mel_loss(
    wave: jax.Array, target: jax.Array, sample_rate: int, n_fft: int, hop: int, bands: int = 80
) -> jax.Array:
    """SpeechTokenizer's mel distance of waveforms [B, T]: mean difference of log-magnitudes (HiFi-GAN's)."""

    def log_magnitudes(x: jax.Array) -> jax.Array:
        x = spectral.frames(spectral.mirrored(x, n_fft, hop), n_fft, hop) * spectral.hann(n_fft)
        magnitude = _magnitude(jnp.fft.rfft(x)) + 1e-9
        mel = jnp.matmul(magnitude, spectral.htk_bands(sample_rate, n_fft, bands, 0.0, True))
        return jnp.log(jnp.maximum(mel, 1e-5))

    return jnp.mean(jnp.abs(log_magnitudes(wave) - log_magnitudes(target)))


def mel_scales_loss(
    wave: jax.Array, target: jax.Array, sample_rate: int, sizes: Sequence[int], bands: int = 64
) -> jax.Array:
    """EnCodec's mel distance of waveforms [B, T] over windows of several sizes (hop = size / 4).

    The mean over sizes of the mean absolute difference of power mel spectra and the mean squared difference
    of their decimal logarithms.
    """

    def power_mels(x: jax.Array, size: int) -> jax.Array:
        window = spectral.hann(size)
        x = spectral.frames(spectral.mirrored(x, size, size // 4), size, size // 4) * window
        spectrum = jnp.fft.rfft(x)
        power = (spectrum.real**2 + spectrum.imag**2) / float((window.astype(float) ** 2).sum())
        return jnp.matmul(power, spectral.htk_bands(sample_rate, size, bands, 64.0, False))

    total = 0.0
    for size in sizes:
        mels, target_mels = power_mels(wave, size), power_mels(target, size)
        logs = jnp.log10(mels + 1e-5) - jnp.log10(target_mels + 1e-5)
        total += jnp.mean(jnp.abs(mels - target_mels)) + jnp.mean(logs**2)
    return total / (2 * len(sizes))


def distillation_loss(features: jax.Array, teacher: jax.Array, frames: jax.Array) -> jax.Array:
    """SpeechTokenizer's: -log σ(cosine) of features and teacher's [B, F, S] along time, per dimension.

    `frames` [B] says how many of each row count.
    """
    return jnp.mean(-jax.nn.log_sigmoid(cosine_over_time(features, teacher, frames)))


def cosine_over_time(features: jax.Array, teacher: jax.Array, frames: jax.Array) -> jax.Array:
    """Cosine [B, S] of two sequences [B, F, S] per dimension, over the first `frames` [B] of each row."""
    inside = (jnp.arange(features.shape[1]) < frames[:, None])[..., None]
    features, teacher = jnp.where(inside, features, 0), jnp.where(inside, teacher, 0)
    squares = jnp.sum(features**2, 1) * jnp.sum(teacher**2, 1)
    return jnp.sum(features * teacher, 1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))


def _magnitude(spectrum: jax.Array) -> jax.Array:
    """|spectrum|, with a gradient of 0 where it is 0."""
    power = spectrum.real**2 + spectrum.imag**2
    return jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1.0)), 0.0)


def advance_loss(direction: jax.Array, spectrum: jax.Array, n_fft: int, hop: int, floor: float) -> jax.Array:
    """How wrong predicted instantaneous frequencies are, weighted by the amplitude they matter for; 0 to 2.

    Args:
      direction: [B, F, bins, 2], unit vectors (cos, sin) of the predicted phase advance beyond the nominal
      one.
      spectrum: complex [B, F, bins] of the target.
    """
    nominal = spectral.nominal_advance(n_fft, hop)
    step = spectrum[:, 1:] * jnp.conj(spectrum[:, :-1]) * np.exp(-1j * nominal).astype(np.complex64)
    size = jnp.abs(step)
    wrong = size - (step.real * direction[:, 1:, :, 0] + step.imag * direction[:, 1:, :, 1])
    weight = jax.lax.rsqrt(size + floor**2)  # leaves the geometric mean of the two amplitudes as weight
    return jnp.sum(wrong * weight) / (jnp.sum(size * weight) + 1e-3)


def si_sdr(wave: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio, dB, of wave [T] to target [T] (Le Roux et al. 2019)."""
    target = target - target.mean()
    wave = wave - wave.mean()
    along = (wave @ target) / (target @ target + 1e-9) * target
    return float(10 * np.log10((along @ along + 1e-9) / ((wave - along) @ (wave - along) + 1e-9)))
