"""The decode loop: equal to full forward passes, whatever the padding and the neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_grammar import read_answer, small_vocabulary

from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import Decoder, init_params
from anygpt_jax.sampling.grammar import Grammar
from anygpt_jax.sampling.sampler import Decoding, Sampler, bucket, draw

VOCAB = small_vocabulary()
GRAMMAR = Grammar(VOCAB)
CONFIG = DecoderConfig.preset("dummy", vocab_size=VOCAB.padded_size, num_real_rows=VOCAB.size)
SAMPLER = Sampler(CONFIG, GRAMMAR)
GREEDY = Decoding(temperature=0.0)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 3 * x, init_params(CONFIG, 0))


def keys(count, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def prompts_of(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(3, VOCAB.text_size, length).astype(np.int32) for length in lengths]


@jax.jit
def full_pass(params, ids, last, state):
    """The greedy token after position `last` of ids [1, 64], without a cache; and the state behind it."""
    decoder = Decoder(CONFIG)
    hidden, _ = decoder.apply({"params": params}, ids)
    logits = decoder.apply({"params": params}, hidden[:, last], method="logits")
    token = jnp.argmax(jnp.where(GRAMMAR.mask(state), logits, -jnp.inf), axis=1)
    return token, GRAMMAR.advance(state, token)


def greedy_by_full_passes(params, prompt, block, budget):
    state = GRAMMAR.initial([block], [budget])
    ids = list(prompt)
    while not bool(state.done[0]):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        token, state = full_pass(params, padded, len(ids) - 1, state)
        ids.append(int(token[0]))
    return ids[len(prompt) :]


def test_greedy_answers_equal_full_forward_passes_for_prompts_of_mixed_lengths(params):
    prompts, blocks, budgets = prompts_of([5, 17, 9]), ["image", None, "music"], [7, 12, 19]
    answers = SAMPLER.sample(params, prompts, GRAMMAR.initial(blocks, budgets), [GREEDY] * 3, keys(3))
    for prompt, block, budget, answer in zip(prompts, blocks, budgets, answers, strict=True):
        assert answer.tolist() == greedy_by_full_passes(params, prompt, block, budget)


def test_a_row_does_not_depend_on_its_neighbours_or_its_place(params):
    prompts, blocks = prompts_of([5, 17, 9]), ["image", "speech", "music"]
    together = SAMPLER.sample(params, prompts, GRAMMAR.initial(blocks, [20] * 3), [Decoding()] * 3, keys(3))
    order = [2, 0, 1]
    shuffled = SAMPLER.sample(
        params,
        [prompts[i] for i in order],
        GRAMMAR.initial([blocks[i] for i in order], [20] * 3),
        [Decoding()] * 3,
        keys(3)[jnp.array(order)],
    )
    for place, row in enumerate(order):
        assert shuffled[place].tolist() == together[row].tolist()


def test_sampled_answers_are_decodable_and_settings_hold_per_row(params):
    blocks = ["image", None, "music", "speech"]
    decodings = [Decoding(2.0), GREEDY, Decoding(1.0, top_k=3), Decoding(1.0, top_p=0.5)]
    state = GRAMMAR.initial(blocks, [25] * 4)
    first = SAMPLER.sample(params, prompts_of([6] * 4), state, decodings, keys(4, 1))
    second = SAMPLER.sample(params, prompts_of([6] * 4), state, decodings, keys(4, 2))
    for block, answer in zip(blocks, first, strict=True):
        read_answer(VOCAB, answer.tolist(), block, set())
    assert first[0].tolist() != second[0].tolist()
    assert first[1].tolist() == second[1].tolist()


def test_draw_keeps_to_top_k_and_to_the_nucleus():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.06, 0.04, 0.0]]))
    rows = 400

    def support(temperature=1.0, top_k=0, top_p=1.0):
        tokens = draw(
            jnp.tile(logits, (rows, 1)),
            keys(rows),
            temperature=jnp.full(rows, temperature),
            top_k=jnp.full(rows, top_k),
            top_p=jnp.full(rows, top_p),
        )
        return set(np.asarray(tokens).tolist())

    assert support() == {0, 1, 2, 3, 4}
    assert support(top_k=2) == {0, 1}
    assert support(top_k=50) == {0, 1, 2, 3, 4}
    assert support(top_p=0.5) == {0, 1}
    assert support(top_p=0.35) == {0}
    assert support(top_p=0.89) == {0, 1, 2}
    assert support(top_k=2, top_p=0.6) == {0, 1}  # 0.4 / 0.7 is less than 0.6
    assert support(top_k=2, top_p=0.5) == {0}
    assert support(temperature=0.0) == {0}


def test_draw_follows_the_tempered_probabilities():
    probabilities = np.array([0.5, 0.3, 0.2])
    rows = 20_000
    tokens = draw(
        jnp.tile(jnp.log(jnp.array([probabilities])), (rows, 1)),
        keys(rows),
        temperature=jnp.full(rows, 0.5),
        top_k=jnp.zeros(rows, jnp.int32),
        top_p=jnp.ones(rows),
    )
    expected = probabilities**2 / np.sum(probabilities**2)
    np.testing.assert_allclose(np.bincount(tokens, minlength=3) / rows, expected, atol=0.015)


def test_buckets_are_few_and_never_too_small():
    sizes = [bucket(length) for length in range(1, 2000)]
    assert all(size >= length for length, size in enumerate(sizes, start=1))
    assert len(set(sizes)) <= 14
