"""The decoder: what a token may read, the cache, the presets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.model.config import PRESETS, REMAT_POLICIES, DecoderConfig
from anygpt_jax.model.decoder import Decoder, init_cache, init_params, unroll

CONFIG = DecoderConfig.preset("dummy", vocab_size=128, num_real_rows=100)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, seed=0)


def tokens_of(seed: int, *shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.num_real_rows)


@functools.partial(jax.jit, static_argnames="config")
def run(params, tokens, positions=None, segments=None, config=CONFIG):
    return Decoder(config).apply({"params": params}, tokens, positions, segments)[0]


@jax.jit
def run_cached(params, tokens, segments, cache):
    return Decoder(CONFIG).apply({"params": params}, tokens, segment_ids=segments, cache=cache)


def test_a_token_never_reads_what_comes_after_it(params):
    tokens = tokens_of(1, 2, 12)
    changed = tokens.at[:, 7:].set((tokens[:, 7:] + 1) % CONFIG.num_real_rows)
    before, after = run(params, tokens), run(params, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 0.01


def test_packed_documents_do_not_read_each_other(params):
    first, second = tokens_of(2, 1, 5), tokens_of(3, 1, 7)
    packed = jnp.concatenate([first, second], axis=1)
    segments = jnp.array([[1] * 5 + [2] * 7])
    positions = jnp.array([[*range(5), *range(7)]])
    together = run(params, packed, positions, segments)
    np.testing.assert_allclose(together[:, :5], run(params, first), atol=1e-5)
    np.testing.assert_allclose(together[:, 5:], run(params, second), atol=1e-5)


def test_the_cache_gives_the_same_as_one_pass(params):
    tokens = tokens_of(4, 2, 10)
    cache, parts = init_cache(CONFIG, batch=2, length=16), []
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, 10))]:
        hidden, cache = run_cached(params, tokens[:, start:stop], None, cache)
        parts.append(hidden)
    assert int(cache.index) == 10
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), run(params, tokens), atol=1e-5)


def test_unrolled_for_a_cpu_the_decoder_gives_the_same_with_a_cache_and_without(params):
    tokens, unrolled = tokens_of(4, 2, 10), {"params": unroll(params, CONFIG)}
    decoder = Decoder(CONFIG, unrolled=True)
    step = jax.jit(lambda tokens, cache: decoder.apply(unrolled, tokens, cache=cache))
    expected = run(params, tokens)
    np.testing.assert_allclose(step(tokens, None)[0], expected, atol=1e-5)
    cache, parts = init_cache(CONFIG, batch=2, length=16, unrolled=True), []
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, 10))]:
        hidden, cache = step(tokens[:, start:stop], cache)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, atol=1e-5)


def test_left_padding_changes_nothing(params):
    tokens = tokens_of(5, 1, 6)
    padded = jnp.concatenate([jnp.zeros((1, 3), jnp.int32), tokens], axis=1)
    segments = jnp.array([[0] * 3 + [1] * 6])
    cache = init_cache(CONFIG, batch=1, length=12)
    hidden, cache = run_cached(params, padded[:, :7], segments[:, :7], cache)
    rest, cache = run_cached(params, padded[:, 7:], None, cache)
    assert int(cache.next_position[0]) == 6
    both = jnp.concatenate([hidden[:, 3:], rest], axis=1)
    np.testing.assert_allclose(both, run(params, tokens), atol=1e-5)


def test_padding_rows_of_the_vocabulary_never_win(params):
    logits = Decoder(CONFIG).apply({"params": params}, run(params, tokens_of(6, 1, 4)), method="logits")
    assert logits.dtype == jnp.float32
    assert (logits[..., CONFIG.num_real_rows :] < -1e29).all()
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(("policy", "unroll"), [*((policy, 1) for policy in REMAT_POLICIES[1:]), ("none", 2)])
def test_recomputation_and_unrolling_change_no_gradient(params, policy, unroll):
    tokens = tokens_of(7, 2, 8)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(config):
        return jax.grad(lambda p: jnp.sum(run(p, tokens, config=config)[..., ::3]))(params)

    changed = dataclasses.replace(CONFIG, remat_policy=policy, scan_unroll=unroll)
    for a, b in zip(jax.tree.leaves(gradient(CONFIG)), jax.tree.leaves(gradient(changed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_near_float32(params):
    tokens = tokens_of(8, 2, 16)
    exact = run(params, tokens)
    rounded = run(params, tokens, config=dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(exact - rounded.astype(jnp.float32)).max() < 0.1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_parameters_that_it_says(name):
    config = DecoderConfig.preset(name, vocab_size=32000, num_real_rows=32000)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    norms = (2 * config.num_layers + 1) * config.embed_dim
    assert count == config.num_matmul_parameters + config.vocab_size * config.embed_dim + norms
    if name == "llama2-7b":
        assert count == 6_738_415_616  # Hugging Face's count of meta-llama/Llama-2-7b


@pytest.mark.parametrize(
    "overrides",
    [{"num_heads": 3}, {"head_dim": 7}, {"remat_policy": "some"}, {"scan_unroll": 3}, {"depth": 1}],
)
def test_sizes_that_do_not_fit_are_refused(overrides):
    with pytest.raises(ValueError, match=next(iter(overrides))):
        DecoderConfig.preset("dummy", vocab_size=128, num_real_rows=100, **overrides)
