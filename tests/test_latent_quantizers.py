"""Quantisers of learnt latents: which code, what value, what gradient; and the account of codes' use."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.code_use import init_code_use, moved_codebook, update_code_use
from anygpt_tokenizers.latent_quantizers import (
    FiniteScalarQuantizer,
    VectorQuantizer,
    build_quantizer,
    entropy_term,
    squared_distances,
    with_quantizer,
)

LEVELS = (8, 5, 2, 3)
RNG = np.random.default_rng(0)


def vector_quantizer(normalised: bool):
    """A quantiser of 12 codes of 3 numbers, and its parameters."""
    book = RNG.normal(size=(12, 3)).astype(np.float32) * RNG.uniform(0.2, 3, (12, 1)).astype(np.float32)
    return VectorQuantizer(12, 3, normalised), {"params": {"codebook": book}}


def fsq(method: str, x):
    return FiniteScalarQuantizer(LEVELS).apply({}, x, method=method)


def test_the_digits_of_an_fsq_code_are_the_places_of_its_values():
    values = np.asarray(fsq("values_of", jnp.arange(8 * 5 * 2 * 3)))
    steps = [sorted({(place - size // 2) / (size // 2) for place in range(size)}) for size in LEVELS]
    wanted = [row[::-1] for row in itertools.product(*steps[::-1])]  # the first digit counts fastest
    np.testing.assert_allclose(values, wanted, atol=1e-7)


def test_every_fsq_code_is_found_again_from_a_latent_near_its_values():
    codes = np.arange(8 * 5 * 2 * 3)
    levels = np.array(LEVELS)
    places = np.asarray(fsq("values_of", codes)) * (levels // 2)  # whole numbers, the middle of each bin
    half, offset = (levels - 1) * 0.999 / 2, np.where(levels % 2, 0.0, 0.5)
    inside = np.clip((places + offset) / half, -0.999, 0.999)
    latents = np.arctanh(inside) - np.tan(offset / half)
    assert np.array_equal(fsq("codes_of", jnp.asarray(latents, jnp.float32)), codes)


def test_fsq_rounds_as_the_paper_says_for_odd_and_even_levels():
    x = RNG.normal(size=(500, 4)) * 3
    levels = np.array(LEVELS)
    half, offset = (levels - 1) * (1 - 1e-3) / 2, np.where(levels % 2 == 1, 0.0, 0.5)
    rounded = np.round(np.tanh(x + np.tan(offset / half)) * half - offset)
    basis = np.concatenate([[1], np.cumprod(levels[:-1])])
    wanted = ((rounded + levels // 2) * basis).sum(-1).astype(int)
    codes = np.asarray(fsq("codes_of", jnp.asarray(x, jnp.float32)))
    assert np.mean(codes == wanted) > 0.995  # float32 beside float64, at edges of bins
    zero = np.asarray(fsq("values_of", fsq("codes_of", jnp.zeros(4))))
    assert (np.abs(zero[[0, 1, 3]]) < 1e-6).all()


def test_gradients_pass_through_fsq_and_there_is_no_term():
    latents = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    quantizer = FiniteScalarQuantizer(LEVELS)
    found = quantizer.apply({}, latents)
    assert found.terms == {}
    np.testing.assert_allclose(found.values, fsq("values_of", found.codes), atol=1e-6)
    slopes = jax.grad(lambda x: quantizer.apply({}, x).values.sum())(latents)
    assert (np.asarray(slopes) > 0).all()


def test_published_levels_of_fsq_give_the_published_numbers_of_codes():
    for levels, size in [((8, 8, 8, 4, 4), 8192), ((8, 6, 5), 240), ((8, 5, 5, 5), 1000)]:
        codec = with_quantizer({"quantizer": {"kind": "fsq", "levels": levels}, "codebook_size": 1})
        assert codec["codebook_size"] == build_quantizer(codec).size == size
        assert build_quantizer(codec).dim == len(levels)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [({"kind": "fsq", "levels": (8, 1)}, "each 2 or more"), ({"kind": "gumbel"}, "there are normalised")],
)
def test_a_quantiser_that_is_none_is_refused(quantizer, message):
    with pytest.raises(UserError, match=message):
        with_quantizer({"quantizer": quantizer, "codebook_size": 4})


@pytest.mark.parametrize("normalised", [False, True])
def test_the_nearest_code_is_that_of_brute_force(normalised):
    quantizer, variables = vector_quantizer(normalised)
    x, book = RNG.normal(size=(200, 3)), np.asarray(variables["params"]["codebook"], np.float64)
    scaled = book
    if normalised:
        scaled = book / np.linalg.norm(book, axis=1, keepdims=True)
        wanted = np.argmax(x @ scaled.T, axis=1)
    else:
        wanted = np.argmin(((x[:, None] - book) ** 2).sum(-1), axis=1)
    codes = quantizer.apply(variables, jnp.asarray(x, jnp.float32), method="codes_of")
    assert np.array_equal(codes, wanted)
    values = quantizer.apply(variables, codes, method="values_of")
    np.testing.assert_allclose(values, scaled[wanted], atol=1e-6)
    longer = quantizer.apply(variables, jnp.asarray(9 * x, jnp.float32), method="codes_of")
    assert np.array_equal(longer, wanted) == normalised


@pytest.mark.parametrize("normalised", [False, True])
def test_each_term_of_vq_moves_its_own_side_and_the_values_move_the_latents(normalised):
    quantizer, variables = vector_quantizer(normalised)
    latents = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)

    def slopes(part):
        def of(variables, latents):
            found = quantizer.apply(variables, latents)
            return found.values[..., 0].sum() if part == "values" else found.terms[part]

        book, x = jax.grad(of, argnums=(0, 1))(variables, latents)
        return np.abs(book["params"]["codebook"]).max() > 0, np.abs(x).max() > 0

    assert slopes("codebook") == (True, False)
    assert slopes("commitment") == (False, True)
    assert slopes("values") == (False, True)
    found = quantizer.apply(variables, latents)
    np.testing.assert_allclose(
        found.values, quantizer.apply(variables, found.codes, method="values_of"), atol=1e-6
    )


def test_the_entropy_term_rewards_sure_and_even_choices():
    sure = 10.0 * (1 - np.eye(8, dtype=np.float32))  # every latent next to its own code
    np.testing.assert_allclose(entropy_term(sure, 0.01), -np.log(8), atol=1e-3)
    np.testing.assert_allclose(entropy_term(np.ones((8, 8), np.float32), 0.01), 0, atol=1e-3)
    np.testing.assert_allclose(entropy_term(np.repeat(sure[:1], 8, axis=0), 0.01), 0, atol=1e-3)
    x, book = RNG.normal(size=(5, 3)), RNG.normal(size=(7, 3))
    wanted = ((x[:, None] - book) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(jnp.asarray(x), jnp.asarray(book)), wanted, rtol=1e-4)


def test_use_of_codes_is_counted_and_idle_ones_move_onto_latents():
    use = init_code_use(8, dim=2)
    codes, latents = jnp.array([[0, 1, 2, 3]]), 100 + jnp.arange(8.0).reshape(1, 4, 2)
    for step in range(3):
        use, figures = update_code_use(use, codes, latents, jax.random.key(step), 0.9, restart_after=3)
    np.testing.assert_allclose(figures["code_entropy_bits"], 2, rtol=1e-4)
    assert (figures["codes_in_batch"], figures["dead_codes"], figures["moved_codes"]) == (4, 4, 4)
    book = np.asarray(moved_codebook(use, jnp.zeros((8, 2))))
    assert not book[:4].any() and {tuple(row) for row in book[4:]} <= {
        tuple(row) for row in latents[0].tolist()
    }
    assert not np.asarray(use.idle).any(), "a moved code is given time again"


def test_codes_that_cannot_move_are_only_counted():
    use, figures = update_code_use(
        init_code_use(4), jnp.zeros((3,), jnp.int32), jnp.zeros((3, 1)), jax.random.key(0), 0.9, 0
    )
    assert "moved_codes" not in figures and figures["dead_codes"] == 3
    book = jnp.ones((4, 1))
    assert moved_codebook(use, book) is book
