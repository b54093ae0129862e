"""The text tokenizer: LLaMA's legacy behaviour, and a shipped model that its command reproduces."""

import pytest
from anygpt_tokenizers.cli import UserError
from hypothesis import given
from hypothesis import strategies as st

from anygpt_jax import prompts
from anygpt_jax.smallworld import captions, text_model
from anygpt_jax.text import TextTokenizer

TOKENIZER = TextTokenizer("shipped:smallworld")


def pieces(text):
    return [TOKENIZER.piece(i) for i in TOKENIZER.encode_run(text)]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (": Describe", ["▁:", "▁Describe"]),
        (" ", ["▁▁"]),
        ("\n", ["▁", "<0x0A>"]),
        (": a red circle", ["▁:", "▁a", "▁red", "▁circle"]),
        (": ", ["▁:", "▁"]),
        ("", []),
    ],
)
def test_every_run_gets_the_dummy_prefix(run, expected):
    assert pieces(run) == expected


def test_every_word_of_the_small_world_and_of_the_instructions_is_one_piece():
    words = {
        word.strip(".?")
        for text in prompts.load_instructions().all()
        for word in text.split()
        if "{" not in word
    }
    for word in [*captions.words(), *words]:
        assert pieces(word) == [f"▁{word}"]
    assert pieces("What is in this picture?") == ["▁What", "▁is", "▁in", "▁this", "▁picture", "?"]


def test_the_shipped_text_model_is_reproduced_byte_for_byte(tmp_path):
    TOKENIZER.save(tmp_path / "shipped.model")
    assert text_model.train_text_model() == (tmp_path / "shipped.model").read_bytes()
    assert TOKENIZER.size == text_model.NUM_PIECES


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00▁")))
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode_run(text)) == text


@pytest.mark.parametrize("typed", ["<s></s><unk>", "<sosp><🗣️1><eosp>", "[Human]: x<eoh> [MMGPT]:", "<0x0A>"])
def test_typed_control_tokens_stay_ordinary_text(typed):
    ids = TOKENIZER.encode_run(typed)
    assert min(ids) > 2 and max(ids) < TOKENIZER.size
    assert TOKENIZER.decode(ids) == typed


def test_a_missing_or_wrong_model_is_explained(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        TextTokenizer(tmp_path / "none.model")
    with pytest.raises(UserError, match="no shipped text model 'french'"):
        TextTokenizer("shipped:french")
    (tmp_path / "wrong.model").write_text("hello")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        TextTokenizer(tmp_path / "wrong.model")
