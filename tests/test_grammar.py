"""The grammar: whatever the model's logits, an answer can be decoded and ends inside its budget."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt_jax import vocabulary
from anygpt_jax.sampling.grammar import Grammar

ROWS, STEPS = 6, 48


def small_vocabulary(extra=()):
    return vocabulary.from_text_model(40, "none", pad_multiple=16).extend(
        [
            *vocabulary.CONTROL_TOKENS,
            vocabulary.make_modality("image", 2, 5, kind="image", image_size=8, fixed_frames=3, max_frames=3),
            vocabulary.make_modality("speech", 1, 7, max_frames=9),
            vocabulary.make_modality("music", 3, 4, max_frames=6),
            *extra,
        ]
    )


VOCAB = small_vocabulary()
FIVE = small_vocabulary([vocabulary.make_modality("depth", 2, 3), vocabulary.make_modality("touch", 1, 2)])


@functools.cache
def random_writer(five: bool = False):
    """A jitted function that writes STEPS tokens of random logits under the grammar, for ROWS rows."""
    vocab = FIVE if five else VOCAB
    grammar = Grammar(vocab)

    @jax.jit
    def write(state, key):
        def step(state, key):
            logits = 4 * jax.random.normal(key, (ROWS, vocab.padded_size))
            token = jnp.argmax(jnp.where(grammar.mask(state), logits, -jnp.inf), axis=1)
            after = grammar.advance(state, token)
            return after, (jnp.where(state.done, -1, token), grammar.mask(state).any(axis=1))

        state, (tokens, possible) = jax.lax.scan(step, state, jax.random.split(key, STEPS))
        return tokens.T, possible.T, state

    return grammar, write


def read_answer(vocab, ids, block, may_open):
    """Parses an answer without the grammar's tables; fails if undecodable. Returns its modalities."""
    starts = {m.start_id: m for m in vocab.modalities.values()}
    stop = vocab.control["<eos>"]
    ids, found = list(ids), []
    open_block = vocab.modalities[block] if block else None
    while ids:
        if open_block is None:
            token = ids.pop(0)
            if token == stop:
                assert not ids, "nothing follows the stop token"
                return found
            if token in starts:
                open_block = starts[token]
                assert open_block.name in may_open
            else:
                assert 2 < token < vocab.text_size
            continue
        end = ids.index(open_block.end_id)
        codes = vocab.ids_to_codes(open_block.name, np.array(ids[:end]))
        assert len(codes) >= 1
        if open_block.fixed_frames:
            assert len(codes) == open_block.fixed_frames
        assert open_block.max_frames is None or len(codes) <= open_block.max_frames
        found.append(open_block.name)
        ids = ids[end + 1 :]
        open_block = None
        if block:
            assert not ids, "a request for one block ends with its end tag"
            return found
    raise AssertionError("the answer has no end")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), five=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_random_logits_always_give_decodable_answers_in_batches_of_mixed_states(data, five, seed):
    vocab = FIVE if five else VOCAB
    grammar, write = random_writer(five)
    names = list(vocab.modalities)
    blocks = data.draw(st.lists(st.sampled_from([None, *names]), min_size=ROWS, max_size=ROWS))
    may_open = data.draw(st.sets(st.sampled_from(names)))
    least = [
        1 if b is None else vocab.modalities[b].num_codebooks * (vocab.modalities[b].fixed_frames or 1) + 1
        for b in blocks
    ]
    budgets = [data.draw(st.integers(low, STEPS)) for low in least]
    tokens, possible, state = write(grammar.initial(blocks, budgets, may_open), jax.random.key(seed))
    assert np.asarray(possible).all(), "every state allows some token"
    assert np.asarray(state.done).all(), "every row is closed inside its budget"
    for row in range(ROWS):
        ids = [int(t) for t in tokens[row] if t >= 0]
        assert len(ids) <= budgets[row]
        assert len(ids) == budgets[row] - int(state.budget[row])
        read_answer(vocab, ids, blocks[row], may_open)


def test_a_tight_budget_forces_the_block_closed():
    vocab = VOCAB
    grammar, write = random_writer()
    budgets = [8, 7, 6, 5, 4, 4]
    tokens, _, state = write(grammar.initial(["music"] * ROWS, budgets), jax.random.key(0))
    assert np.asarray(state.done).all()
    for row, budget in enumerate(budgets):
        ids = [int(t) for t in tokens[row] if t >= 0]
        assert ids[-1] == vocab.modalities["music"].end_id
        assert len(ids) <= budget and (len(ids) - 1) % 3 == 0


def test_text_may_hold_several_blocks_and_still_ends_with_the_stop_token():
    vocab = VOCAB
    grammar, write = random_writer()
    seen = set()
    for seed in range(20):
        tokens, _, _ = write(
            grammar.initial([None] * ROWS, [STEPS] * ROWS, ["image", "speech"]), jax.random.key(seed)
        )
        for row in np.asarray(tokens):
            seen |= set(read_answer(vocab, [int(t) for t in row if t >= 0], None, {"image", "speech"}))
    assert seen == {"image", "speech"}


def test_padding_and_control_rows_are_never_allowed():
    vocab = small_vocabulary()
    grammar = Grammar(vocab)
    state = grammar.initial([None, "image"], [30, 30], ["image", "speech", "music"])
    mask = np.asarray(grammar.mask(state))
    never = [0, 1, 2, vocab.control["[Human]"], vocab.control["[MMGPT]"], vocab.control["<eoh>"]]
    assert not mask[:, never].any()
    assert not mask[:, vocab.size :].any()


def test_text_controls_count_as_text_where_asked():
    vocab = small_vocabulary().extend(["<-Ins->"])
    marker = vocab.control["<-Ins->"]
    mask = [
        np.asarray(Grammar(vocab, text_controls=t).mask(Grammar(vocab).initial([None], [9])))
        for t in ((), ("<-Ins->",))
    ]
    assert not mask[0][0, marker] and mask[1][0, marker]


@pytest.mark.parametrize(
    ("blocks", "budgets", "message"),
    [(["smell"], [9], "smell"), (["image"], [6], "too small"), ([None], [0], "too small")],
)
def test_impossible_requests_are_named(blocks, budgets, message):
    with pytest.raises(UserError, match=message):
        Grammar(small_vocabulary()).initial(blocks, budgets)


def test_the_published_vocabulary_fits():
    vocab = vocabulary.published("chat")
    grammar = Grammar(vocab, text_controls=("<-Ins->", "<-Res->"))
    state = grammar.initial(["music"], [2000])
    for level in range(5):
        allowed = np.flatnonzero(np.asarray(grammar.mask(state))[0])
        first = vocab.modalities["music"].first_id + (level % 4) * 2048
        codes = allowed[allowed != vocab.modalities["music"].end_id]
        assert codes.min() == first and codes.max() == first + 2047
        state = grammar.advance(state, jnp.array([first + 5]))
