"""Strings of the original format: to codes and ids and back, exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from hypothesis import given
from hypothesis import strategies as st

from anygpt_jax import strings
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import published

CHAT = published("chat")
TOKENIZER = TextTokenizer("shipped:smallworld")
SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "pretrain"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(),
    reason=f"the original sample data is not at {SAMPLES.parent} (it is not part of the repository)",
)


def test_speech_is_written_with_its_variation_selector():
    string = "<sosp><\U0001f5e3\ufe0f12><\U0001f5e3\ufe0f7><eosp>"
    np.testing.assert_array_equal(strings.string_to_codes(CHAT, "speech", string), [[12], [7]])
    assert strings.codes_to_string(CHAT, "speech", np.array([[12], [7]])) == string


@given(st.lists(st.lists(st.integers(0, 2047), min_size=4, max_size=4), max_size=5))
def test_codes_go_to_strings_and_back(codes):
    codes = np.array(codes, np.int32).reshape(-1, 4)
    string = strings.codes_to_string(CHAT, "music", codes)
    np.testing.assert_array_equal(strings.string_to_codes(CHAT, "music", string), codes)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("<sosp><🗣️1>", "must be <sosp>…<eosp>"),
        ("<sosp><🗣️1> <🗣️2><eosp>", "more than codes"),
        ("<sosp><🗣️01><eosp>", "more than codes"),
        ("<sosp><\U0001f5e31><eosp>", "more than codes"),
        ("<sosp><🗣️1024><eosp>", "no code of 'speech'"),
    ],
)
def test_strings_that_do_not_fit_are_explained(string, message):
    with pytest.raises(UserError, match=message):
        strings.string_to_codes(CHAT, "speech", string)


def test_a_string_is_split_at_added_tokens_and_each_run_encoded_with_its_own_prefix():
    ids = strings.encode(CHAT, TOKENIZER, "[Human]: Draw this.<eoh> [MMGPT]: <soim><👀3><eoim><eos>")
    control = CHAT.token_strings
    expected = [
        control["[Human]"], *TOKENIZER.encode_run(": Draw this."),
        control["<eoh>"], *TOKENIZER.encode_run(" "),
        control["[MMGPT]"], *TOKENIZER.encode_run(": "),
        control["<soim>"], control["<👀3>"], control["<eoim>"], control["<eos>"],
    ]  # fmt: skip
    assert ids.tolist() == expected
    assert strings.decode(CHAT, TOKENIZER, ids) == "[Human]: Draw this.<eoh> [MMGPT]: <soim><👀3><eoim><eos>"
    assert strings.decode(CHAT, TOKENIZER, ids[-4:-1], separator=" ") == "<soim> <👀3> <eoim>"


def test_a_code_beyond_the_last_one_is_ordinary_text():
    ids = strings.encode(CHAT, TOKENIZER, "<🗣️1023><🗣️1024>")
    assert ids[0] == CHAT.token_strings["<🗣️1023>"]
    assert max(ids[1:]) < TOKENIZER.size


@needs_samples
@pytest.mark.parametrize("name", ["journeydb", "gigaspeech", "music-1m"])
def test_the_original_samples_round_trip_exactly(name):
    for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        modality = next(key for key in row if key != "text")
        codes = strings.string_to_codes(CHAT, modality, row[modality])
        assert strings.codes_to_string(CHAT, modality, codes) == row[modality]
        ids = strings.encode(CHAT, TOKENIZER, row[modality])
        assert strings.decode(CHAT, TOKENIZER, ids) == row[modality]
        np.testing.assert_array_equal(CHAT.ids_to_codes(modality, ids[1:-1]), codes)
        if modality == "image":
            assert len(ids) == 34
        if modality == "music":
            assert len(ids) == 1002
