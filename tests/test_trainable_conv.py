"""The convolutions of discriminators in the form that a CPU is fast at: nothing but the form differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers.trainable_conv import FEW_CHANNELS, convolve, depthwise

CASES = [
    # shape of x, kernel, features, stride, padding, dilation, groups
    ((2, 50, 1), (5,), 8, (3,), (2,), None, 1),
    ((2, 47, 8), (41,), 12, (4,), (20,), None, 4),
    ((1, 3, 16), (41,), 16, (2,), (20,), None, 16),
    ((3, 20, 2 * FEW_CHANNELS), (5,), 4, (2,), (2,), None, 2),
    ((2, 7, 21, 4), (3, 9), 6, (1, 2), (4, 4), (4, 1), 1),
    ((2, 7, 21, 4), (3, 9), 6, (1, 1), (1, 4), (1, 1), 1),
    ((2, 9, 10, 3), (4, 3), 5, (2, 3), (1, 0), None, 1),
]


def plain(x, kernel, stride, padding, dilation, groups):
    space = "HW"[: len(stride)]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(side, side) for side in padding],
        rhs_dilation=dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
        precision="highest",
    )


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_convolution(case):
    shape, taps, features, *settings = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*taps, shape[-1] // settings[-1], features)), jnp.float32)

    assert_alike(lambda x, k: convolve(x, k, *settings), lambda x, k: plain(x, k, *settings), x, kernel)


@pytest.mark.parametrize("taps", [4, 5])
def test_a_channel_by_itself_is_convolved_as_in_groups(taps):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(taps, 1, 6)), jnp.float32)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(taps // 2, (taps - 1) // 2)],
            dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=6,
            precision="highest",
        )

    assert_alike(depthwise, grouped, x, kernel)


def assert_alike(ours, theirs, x, kernel):
    def value_and_gradients(function):
        y = function(x, kernel)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return (y, *jax.grad(lambda x, k: jnp.sum(weights * function(x, k)), (0, 1))(x, kernel))

    for mine, other in zip(value_and_gradients(ours), value_and_gradients(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5 * float(jnp.abs(other).max()), rtol=0)
