"""Short-time spectra: the inverse is exact, sinusoids have their level, advances keep the pitch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import audio_losses, spectral

SIZES = [(640, 160), (1280, 320)]


def sinusoid(frequency: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(16_000) / 16_000, dtype=np.float32)[None]


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_the_inverse_gives_the_wave_back(n_fft, hop):
    wave = np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)
    spectrum = spectral.stft(wave, n_fft, hop)
    assert spectrum.shape == (2, 16_000 // hop, n_fft // 2 + 1)
    again = spectral.istft(spectrum, n_fft, hop)
    np.testing.assert_allclose(again[:, hop:-hop], wave[:, hop:-hop], atol=1e-4)


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_a_sinusoid_peaks_at_its_amplitude(n_fft, hop):
    magnitude = jnp.abs(spectral.stft(sinusoid(1_000.0), n_fft, hop))
    assert float(magnitude[0, 20].max()) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("frequency", [261.6, 440.0, 1_234.5])
def test_magnitudes_and_phase_advances_give_back_the_pitch(frequency):
    n_fft, hop = 1280, 320
    spectrum = spectral.stft(sinusoid(frequency), n_fft, hop)
    step = spectrum * jnp.conj(jnp.roll(spectrum, 1, axis=1))
    advance = jnp.angle(step * jnp.exp(-1j * spectral.nominal_advance(n_fft, hop)))
    wave = spectral.waveform_from_advance(jnp.abs(spectrum), advance, n_fft, hop, iterations=8)
    middle = np.asarray(wave[0, 2_000:-2_000]) * np.hanning(12_000)
    peak = np.argmax(np.abs(np.fft.rfft(middle, 160_000))) / 10
    assert peak == pytest.approx(frequency, abs=1.0)
    assert np.abs(middle).max() == pytest.approx(0.5, rel=0.1)


def test_the_advance_loss_is_zero_for_the_true_advance_and_large_for_the_opposite():
    n_fft, hop = 640, 160
    spectrum = spectral.stft(sinusoid(700.0), n_fft, hop)
    step = spectrum * jnp.conj(jnp.roll(spectrum, 1, axis=1))
    step = step * jnp.exp(-1j * spectral.nominal_advance(n_fft, hop))
    direction = jnp.stack([step.real, step.imag], -1) / (jnp.abs(step)[..., None] + 1e-12)
    loss = [float(audio_losses.advance_loss(d, spectrum, n_fft, hop, 2e-4)) for d in (direction, -direction)]
    assert loss[0] < 0.01 and loss[1] > 1.8


def test_losses_are_zero_for_equal_waves_and_have_finite_gradients():
    wave = sinusoid(300.0)
    silence = np.zeros_like(wave)
    for x in (wave, silence):
        terms = audio_losses.multi_resolution_losses(x, x, 16_000, 40, 2e-4, (256, 512))
        assert all(float(value) < 1e-3 for value in terms.values())
    total = lambda x: sum(audio_losses.multi_resolution_losses(x, wave, 16_000, 40, 2e-4, (256,)).values())  # noqa: E731
    assert np.isfinite(jax.grad(total)(silence)).all()


def test_si_sdr_ignores_the_scale():
    wave, noise = sinusoid(300.0)[0], np.random.default_rng(0).standard_normal(16_000) * 0.05
    assert audio_losses.si_sdr(3 * (wave + noise), wave) == pytest.approx(17, abs=0.5)
