"""The terms of a VQGAN's loss by themselves: logit-Laplace, the perceptual distance, the discriminator's."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers import picture_losses
from anygpt_tokenizers.cli import UserError, load_config
from anygpt_tokenizers.perceptual import perceptual_distance, read_features
from anygpt_tokenizers.picture_adversary import PictureAdversary
from anygpt_tokenizers.picture_discriminator import Discriminator, blur_pool
from vgg_weights import vgg_arrays

CONFIG = f"{Path(__file__).parents[1]}/configs/tokenizers/vit_vqgan.py:dummy"
BATCH = 4


def adversary(**settings) -> PictureAdversary:
    config = load_config(CONFIG)
    config.steps = 100
    config.adversary.update(settings)
    return PictureAdversary(config)


def test_a_file_that_is_no_vgg_is_named_with_what_it_lacks(tmp_path):
    arrays = vgg_arrays()
    short = {name: value for name, value in arrays.items() if name != "features.24.weight"}
    safetensors.numpy.save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"short.* has no features\.24\.weight"):
        read_features(tmp_path / "short.safetensors")
    wrong = {**arrays, "features.2.weight": np.zeros((2, 5, 3, 3), np.float32)}
    safetensors.numpy.save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"features\.2\.weight has the shape \[2, 5, 3, 3\]"):
        read_features(tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_features(tmp_path / "none.safetensors")


def test_the_perceptual_distance_is_zero_only_of_equal_pictures(tmp_path):
    safetensors.numpy.save_file(vgg_arrays(), tmp_path / "vgg.safetensors")
    features = read_features(tmp_path / "vgg.safetensors")
    a, b = jax.random.uniform(jax.random.key(0), (2, 2, 16, 16, 3))
    distance = jax.jit(functools.partial(perceptual_distance, features))
    assert distance(a, a) < 1e-9
    assert distance(a, b) > distance(a, a + 0.01 * (b - a)) > 1e-6


def test_the_logit_laplace_density_sums_to_one():
    moved = np.linspace(1e-4, 1 - 1e-4, 200_001)
    pixels = (moved - 0.1) / 0.8
    for location, raw in [(0.0, 0.0), (1.3, -1.0), (-0.7, -9.0)]:
        output = np.broadcast_to(np.float32([location] * 3 + [raw] * 3), (len(moved), 6))
        nats = jax.vmap(picture_losses.logit_laplace)(output, np.repeat(pixels[:, None], 3, axis=1))
        assert np.trapezoid(np.exp(-np.asarray(nats, np.float64)), moved) == pytest.approx(1, abs=0.01)
    location = np.log(0.3 / 0.7)
    assert picture_losses.pixels_of(np.full((1, 6), location), "logits")[0, 0] == pytest.approx(
        0.25, abs=1e-6
    )


def test_blurring_keeps_flat_pictures_and_halves_the_side():
    x = jnp.full((1, 8, 8, 2), 3.0).at[..., 1].set(-1.0)
    pooled = blur_pool(x)
    assert pooled.shape == (1, 4, 4, 2)
    np.testing.assert_allclose(pooled[0, 1:-1, 1:-1], np.broadcast_to([3.0, -1.0], (2, 2, 2)), atol=1e-6)


def test_the_discriminators_published_width():
    shapes = jax.eval_shape(
        Discriminator().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    )["params"]
    assert shapes["Conv_0"]["kernel"].shape == (3, 3, 3, 64)
    assert shapes["Dense_0"]["kernel"].shape == (4 * 4 * 512, 512)


def test_the_penalty_is_the_squared_slope_and_lazy_ones_weigh_as_much():
    lazy = adversary(penalty=10.0, penalty_every=4)
    lazy._logits = lambda params, pixels: jnp.sum(params * pixels, axis=(1, 2, 3))
    slopes, real = jax.random.normal(jax.random.key(0), (16, 16, 3)), jnp.zeros((BATCH, 16, 16, 3))
    found = [float(lazy._penalty(slopes, real, jnp.int32(step))) for step in range(4)]
    np.testing.assert_allclose(found, [40 * float(jnp.sum(slopes**2)), 0, 0, 0], rtol=1e-5)


def test_the_discriminator_learns_and_the_codec_is_not_pulled_through_its_update():
    judge = adversary(penalty=0.0)
    state = judge.init(jax.random.key(0))
    real = jnp.ones((BATCH, 16, 16, 3))
    made = real * jax.random.uniform(jax.random.key(1), (BATCH, 16, 16, 1))

    def loss(made, state, step):
        state, figures = judge.update(state, real, made, step)
        return figures["discriminator"], (state, figures)

    update = jax.jit(jax.grad(loss, has_aux=True))
    seen = []
    for step in range(40):
        slopes, (state, figures) = update(made, state, step)
        seen.append(float(figures["discriminator"]))
    assert seen[-1] < 0.9 * seen[0]
    assert not np.asarray(slopes).any()
    assert np.asarray(jax.grad(lambda made: judge.term(state, made))(made)).any()
