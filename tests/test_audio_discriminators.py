"""Discriminators against recorded outputs of SpeechTokenizer's; losses of training against them."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from anygpt_tokenizers import audio_adversary, audio_losses
from anygpt_tokenizers.audio_discriminators import Discriminators, Judgement
from audio_signals import sound
from discriminator_weights import PUBLISHED, SAMPLES, random_variables
from recorded_codecs import recorded


def test_the_discriminators_say_what_speechtokenizers_own_say():
    variables, expected = random_variables(), recorded("discriminators")
    sizes = {
        name: sum(
            leaf.size
            for key, part in variables["params"].items()
            if name in key
            for leaf in jax.tree.leaves(part)
        )
        for name in ("by_period", "by_scale", "by_spectrum")
    }
    assert [round(size / 1e6, 2) for size in sizes.values()] == [41.11, 29.62, 0.47]
    wave = sound(2, SAMPLES, 16_000)[:, 0]
    judgements = jax.jit(PUBLISHED.apply)(variables, wave)
    names = [f"by_period_{i}" for i in range(5)] + [f"by_scale_{i}" for i in range(3)]
    names += [f"by_spectrum_{i}" for i in range(5)]
    for name, judgement in zip(names, judgements, strict=True):
        logits = np.asarray(judgement.logits).reshape(2, -1)
        np.testing.assert_allclose(logits, expected[f"{name}:logits"], atol=1e-5, rtol=0)
        assert logits[:, 1:].std() > 0.01
        features = [jnp.abs(found).mean() for found in judgement.features]
        np.testing.assert_allclose(features, expected[f"{name}:features"], atol=1e-5, rtol=0)


def test_the_spectral_norm_follows_the_kernel_only_while_it_learns():
    networks = Discriminators(scales=1, shrink=32)
    wave = sound(1, 600, 16_000)[:, 0]
    variables = jax.jit(networks.init)(jax.random.key(0), wave)
    apply = jax.jit(networks.apply)
    learn = jax.jit(lambda variables: networks.apply(variables, wave, mutable=["spectral"])[1])
    kernel = variables["params"]["by_scale_0"]["convs_0"]["kernel"].reshape(15, -1)
    for _ in range(30):
        variables = {**variables, **learn(variables)}
    vectors = variables["spectral"]["by_scale_0"]["convs_0"]
    found = vectors["left"] @ kernel @ vectors["right"]
    np.testing.assert_allclose(found, np.linalg.norm(kernel, 2), rtol=1e-4)
    once, again = (apply(variables, wave)[0].logits for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_adversarial_losses_are_those_of_the_papers():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(4, 6)).astype(np.float32) for _ in range(3)]
    judgements = [Judgement(x, [x, 2 * x]) for x in parts]
    squares = sum(np.mean((1 - x[:2]) ** 2) + np.mean(x[2:] ** 2) for x in parts)
    np.testing.assert_allclose(
        audio_adversary.discriminator_loss(judgements, "least_squares"), squares, rtol=1e-5
    )
    hinges = np.mean([np.maximum(0, 1 - x[:2]).mean() + np.maximum(0, 1 + x[2:]).mean() for x in parts])
    np.testing.assert_allclose(audio_adversary.discriminator_loss(judgements, "hinge"), hinges, rtol=1e-5)
    distance = sum(3 * np.abs(x[:2] - x[2:]).mean() for x in parts)
    np.testing.assert_allclose(audio_adversary.feature_loss(judgements), distance, rtol=1e-5)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e4, 1e-3)])
def test_the_balancer_makes_terms_pull_by_their_weights_whatever_their_scale(scales):
    target = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)), jnp.float32)

    def terms_of(x):
        return jnp.stack([scales[0] * jnp.mean((x - target) ** 2), scales[1] * jnp.mean(jnp.abs(x + 1))])

    def pull(factor, balance):
        output = factor * jnp.ones((3, 50))
        new, terms, scalar = audio_adversary.balanced(balance, terms_of, output, jnp.array([3.0, 1.0]), 0.9)
        return scalar, (new, terms, output)

    balance = audio_adversary.init_balance(2)
    for _ in range(3):
        (_, (balance, terms, output)), total = jax.value_and_grad(pull, has_aux=True)(2.0, balance)
    np.testing.assert_allclose(terms, terms_of(output), rtol=1e-6)
    grads = [jax.grad(lambda x, i=i: terms_of(x)[i])(output) for i in range(2)]
    norms = [jnp.linalg.norm(g, axis=1).mean() for g in grads]
    np.testing.assert_allclose(balance.sums / balance.weight, jnp.stack(norms), rtol=1e-5)
    expected = 0.75 * grads[0] / norms[0] + 0.25 * grads[1] / norms[1]
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-4)


def test_the_balancers_average_forgets_old_norms():
    balance = audio_adversary.init_balance(1)
    for scale in [1.0] * 5 + [100.0] * 60:
        balance, _, _ = audio_adversary.balanced(
            balance, lambda x, s=scale: s * x.sum()[None], jnp.ones((1, 4)), jnp.ones(1), 0.8
        )
    np.testing.assert_allclose(balance.sums / balance.weight, [200.0], rtol=1e-3)


def test_mel_distances_are_those_of_the_originals_by_their_formulas():
    wave, other = sound(2, 4800, 16_000)[:, 0], sound(2, 4800, 16_000, seed=1)[:, 0]

    def spectra(x, size, hop):
        window = np.hanning(size + 1)[:-1]
        x = np.pad(x, ((0, 0), ((size - hop) // 2,) * 2), mode="reflect")
        x = np.pad(x, ((0, 0), (0, -(x.shape[1] - size) % hop)))
        starts = range(0, x.shape[1] - size + 1, hop)
        return np.stack([np.fft.rfft(x[:, s : s + size] * window) for s in starts], 1), window

    def mel(x, size, hop):
        bank = librosa.filters.mel(sr=16_000, n_fft=size, n_mels=80, htk=True, norm="slaney")
        return np.log(np.maximum((np.abs(spectra(x, size, hop)[0]) + 1e-9) @ bank.T, 1e-5))

    for size, hop in [(1024, 240), (512, 120)]:
        expected = np.abs(mel(wave, size, hop) - mel(other, size, hop)).mean()
        found = jax.jit(audio_losses.mel_loss, static_argnums=(2, 3, 4))(wave, other, 16_000, size, hop)
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def power(x, size):
        bank = librosa.filters.mel(sr=16_000, n_fft=size, n_mels=64, fmin=64, htk=True, norm=None)
        spectrum, window = spectra(x, size, size // 4)
        return np.abs(spectrum) ** 2 / (window**2).sum() @ bank.T

    def distance(size):
        a, b = power(wave, size), power(other, size)
        return np.abs(a - b).mean() + ((np.log10(a + 1e-5) - np.log10(b + 1e-5)) ** 2).mean()

    expected = (distance(512) + distance(1024)) / 4
    found = jax.jit(audio_losses.mel_scales_loss, static_argnums=(2, 3))(wave, other, 16_000, (512, 1024))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_mel_distances_of_silence_have_finite_gradients():
    silence, wave = np.zeros((1, 2400), np.float32), sound(1, 2400, 16_000)[:, 0]
    for loss in (
        lambda x: audio_losses.mel_loss(x, wave, 16_000, 1024, 240),
        lambda x: audio_losses.mel_scales_loss(x, wave, 16_000, (64, 512)),
    ):
        value, grad = jax.jit(jax.value_and_grad(loss))(silence)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_the_distillation_cosine_is_over_time_and_ignores_padding():
    rng = np.random.default_rng(0)
    features, teacher = rng.normal(size=(2, 2, 9, 4)).astype(np.float32)
    frames = np.array([9, 5])
    found = audio_losses.cosine_over_time(features, teacher, frames)
    for row, count in enumerate(frames):
        a, b = features[row, :count], teacher[row, :count]
        expected = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
    loss = audio_losses.distillation_loss(features, teacher, frames)
    np.testing.assert_allclose(loss, np.mean(-np.log(1 / (1 + np.exp(-found)))), rtol=1e-5)
