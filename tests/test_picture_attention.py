"""Attention of the picture networks: at once, by rows, by heads and pieces, it is one and the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import attention as module

QUERIES, KEYS, HEADS, WIDTH = 12, 7, 3, 8


def plain(query, key, value, mask=0.0):
    """By definition, in float64."""
    query, key, value = (np.asarray(part, np.float64) for part in (query, key, value))
    scores = np.einsum("bnhk,bmhk->bhnm", query, key) / np.sqrt(WIDTH) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhnm,bmhk->bnhk", weights / weights.sum(-1, keepdims=True), value)
    return mixed.reshape(*mixed.shape[:2], -1)


def arrays(rows: int = 2, dtype: str = "float32") -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(rows, n, HEADS, WIDTH)), dtype) for n in (QUERIES, KEYS, KEYS)]


@pytest.fixture(params=[(10**6, 10**6, 1), (1, 10**6, 1), (1, 5 * KEYS, 1), (1, 1, 6)])
def limits(request, monkeypatch):
    """At once, a row at a time, pieces of 4 (the most of 5 that divides 12), pieces of 6."""
    for name, value in zip(("MANY_SCORES", "MOST_SCORES", "FEWEST_QUERIES"), request.param, strict=True):
        monkeypatch.setattr(module, name, value)


def compute(*given):
    return jax.jit(lambda *parts: module.attention(*parts))(*given)  # a new function, so traced anew


def test_it_is_softmax_of_scaled_products_however_it_is_cut(limits):
    given = arrays()
    np.testing.assert_allclose(compute(*given), plain(*given), atol=2e-6)


def test_a_mask_is_added_to_the_scaled_scores(limits):
    given, mask = arrays(), np.where(np.tri(QUERIES, KEYS, dtype=bool), 0.0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(compute(*given, mask), plain(*given, mask), atol=2e-6)


def test_bfloat16_in_is_bfloat16_out_with_a_float32_softmax(limits):
    given = arrays(dtype="bfloat16")
    result = compute(*given)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float32), plain(*given), atol=0.03)


def test_scores_that_overflow_without_their_largest_taken_off_do_not():
    query, key, value = arrays()
    given = 300 * query, 300 * key, value
    np.testing.assert_allclose(compute(*given), plain(*given), atol=1e-3)
