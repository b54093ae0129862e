"""The tiled loss equals the plain one, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.model.loss import LossSpec, tiled_cross_entropy

BATCH, LENGTH, WIDTH, ROWS, REAL = 4, 12, 16, 64, 50


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (BATCH, LENGTH, WIDTH))
    kernel = jax.random.normal(keys[1], (WIDTH, ROWS))
    targets = jax.random.randint(keys[2], (BATCH, LENGTH), 0, REAL)
    weights = jax.random.uniform(keys[3], (BATCH, LENGTH)) * (targets > 5)
    return hidden, kernel, targets, weights


def plain_loss(hidden, kernel, targets, weights, z_loss):
    logits = (hidden @ kernel)[..., :REAL]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (nll + z_loss * log_z**2)), (nll, jnp.argmax(logits, axis=-1) == targets)


@pytest.mark.parametrize(("tile", "shards"), [(128, 1), (4, 1), (5, 2), (1, 4)])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_value_records_and_gradients_are_the_plain_ones(tile, shards, z_loss):
    hidden, kernel, targets, weights = inputs()
    spec = LossSpec(REAL, z_loss, tile, shards)

    @jax.jit
    def tiled(hidden, kernel):
        sums = tiled_cross_entropy(hidden, kernel, targets, weights, spec)
        return 0.3 * sums.total, sums

    @jax.jit
    def plain(hidden, kernel):
        total, records = plain_loss(hidden, kernel, targets, weights, z_loss)
        return 0.3 * total, records

    (value, sums), gradients = jax.jit(jax.value_and_grad(tiled, (0, 1), has_aux=True))(hidden, kernel)
    (expected, (nll, correct)), expected_gradients = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(
        hidden, kernel
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.nll, nll, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(sums.correct, correct)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tiled(hidden, kernel)[0], expected, rtol=1e-5)


def test_padding_rows_get_no_gradient():
    hidden, kernel, targets, weights = inputs()
    gradient = jax.grad(
        lambda k: tiled_cross_entropy(hidden, k, targets, weights, LossSpec(REAL, 0.01)).total
    )(kernel)
    assert (np.asarray(gradient[:, REAL:]) == 0).all()


def test_no_array_of_all_logits_exists():
    hidden, kernel, targets, weights = inputs()
    spec = LossSpec(REAL, 0.0, tile=2)
    step = jax.jit(
        jax.grad(lambda h, k: tiled_cross_entropy(h, k, targets, weights, spec).total, argnums=(0, 1))
    )
    text = step.lower(hidden, kernel).compile().as_text()
    assert f"[{BATCH},{LENGTH},{ROWS}]" not in text
    assert f"[{BATCH * LENGTH},{ROWS}]" not in text


def test_huge_logits_stay_finite():
    hidden, kernel, targets, weights = inputs()
    sums = tiled_cross_entropy(hidden * 1e4, kernel, targets, weights, LossSpec(REAL, 0.0))
    assert np.isfinite(sums.total)
