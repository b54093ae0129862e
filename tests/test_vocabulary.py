"""The vocabulary: published ids, codes to ids and back, new modalities, one-sentence differences."""

import dataclasses
import json

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from ml_collections import ConfigDict

from anygpt_jax import vocabulary
from anygpt_jax.text import TextTokenizer

SMALL = {
    "modalities": [
        {"name": "image", "kind": "image", "num_codebooks": 2, "codebook_size": 8, "fixed_frames": 4},
        {"name": "speech", "num_codebooks": 1, "codebook_size": 16, "frame_rate": 25.0, "max_seconds": 4.0},
    ]
}


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer("shipped:smallworld")


@pytest.fixture(scope="module")
def small(tokenizer):
    return vocabulary.from_config(SMALL, tokenizer)


def test_the_published_chat_layout_is_reproduced():
    chat = vocabulary.published("chat")
    assert (chat.size, chat.padded_size) == (53520, 53632)
    strings = chat.token_strings
    expected = {
        "[Human]": 32000, "[MMGPT]": 32001, "<eoh>": 32002, "<eos>": 32003,
        "<👀0>": 32004, "<👀8191>": 40195, "<soim>": 40196, "<eoim>": 40197,
        "<🗣️0>": 40198, "<🗣️1023>": 41221, "<sosp>": 41222, "<eosp>": 41223,
        "<🎶0>": 41224, "<🎶8191>": 49415, "<somu>": 49416, "<eomu>": 49417,
        "<👂0>": 49418, "<👂4095>": 53513, "<soau>": 53514, "<eoau>": 53515,
        "<eom>": 53516, "[AnyGPT]": 53517, "<-Res->": 53518, "<-Ins->": 53519,
    }  # fmt: skip
    assert {token: strings[token] for token in expected} == expected
    assert sorted(strings.values()) == list(range(32000, 53520))


def test_the_published_base_is_the_chat_layout_without_its_last_four_rows():
    base, chat = vocabulary.published("base"), vocabulary.published("chat")
    assert base.size == 53516
    assert base.modalities == chat.modalities


def test_codes_are_flattened_frame_by_frame_with_one_id_range_per_level():
    chat = vocabulary.published("chat")
    codes = np.array([[0, 1, 2, 3], [2047, 0, 0, 2047]])
    ids = chat.codes_to_ids("music", codes)
    np.testing.assert_array_equal(ids - 41224, [0, 2049, 4098, 6147, 2047, 2048, 4096, 8191])
    np.testing.assert_array_equal(chat.ids_to_codes("music", ids), codes)


def test_every_id_of_every_modality_goes_to_codes_and_back(small):
    for name, entry in small.modalities.items():
        ids = np.arange(entry.num_codes).reshape(entry.num_codebooks, -1).T.reshape(-1) + entry.first_id
        np.testing.assert_array_equal(small.codes_to_ids(name, small.ids_to_codes(name, ids)), ids)


def test_wrong_codes_and_ids_are_named_with_their_position(small):
    with pytest.raises(UserError, match="frame 1, codebook 0"):
        small.codes_to_ids("image", [[0, 0], [8, 0]])
    with pytest.raises(UserError, match="expected \\[frames, 2\\]"):
        small.codes_to_ids("image", [[0, 0, 0]])
    with pytest.raises(UserError, match="position 1"):
        first = small.modalities["image"].first_id
        small.ids_to_codes("image", [first, first])
    with pytest.raises(UserError, match="whole frames"):
        small.ids_to_codes("image", [first])
    with pytest.raises(UserError, match="no modality 'smell'; it has image, speech"):
        small.codes_to_ids("smell", [[0]])


def test_the_modality_table_covers_every_row(small):
    table = small.modality_table()
    assert table.shape == (small.padded_size,) and table.dtype == np.int32
    image, speech = small.modalities.values()
    assert set(table[: image.first_id]) == {0}
    assert set(table[image.first_id : image.end_id + 1]) == {1}
    assert set(table[speech.first_id : speech.end_id + 1]) == {2}
    assert set(table[small.size :]) == {-1}


def test_a_modality_is_added_by_one_more_entry(tokenizer, small):
    config = {"modalities": [*SMALL["modalities"], {"name": "smell", "num_codebooks": 3, "codebook_size": 5}]}
    extended = vocabulary.from_config(config, tokenizer)
    assert extended.modalities["image"] == small.modalities["image"]
    assert extended.size == small.size + 17
    assert extended.directions()[-2:] == ["smell->text", "text->smell"]
    assert extended == small.extend([vocabulary.make_modality("smell", 3, 5)])


def test_codecs_give_the_facts_that_a_config_leaves_out(tokenizer):
    class FakeCodec:
        num_codebooks, codebook_size, kind, frame_rate, sample_rate, hash = 2, 32, "audio", 25.0, 16000, "abc"

    config = ConfigDict({"modalities": [{"name": "music", "max_seconds": 2.0}]})
    entry = vocabulary.from_config(config, tokenizer, {"music": FakeCodec()}).modalities["music"]
    assert (entry.num_codebooks, entry.codebook_size, entry.codec_hash) == (2, 32, "abc")
    assert (entry.sample_rate, entry.max_frames) == (16000, 50)
    with pytest.raises(UserError, match="add it to config"):
        vocabulary.from_config(config, tokenizer)


def test_a_published_layout_is_bound_to_its_text_model_and_codecs(tokenizer):
    class LlamaText:
        size, hash = 32000, "llama"

    class Codec:
        num_codebooks, codebook_size, hash = 1, 8192, "seed"

    chat = vocabulary.from_config({"published": "chat"}, LlamaText(), {"image": Codec()})
    assert (chat.size, chat.text_model_hash, chat.modalities["image"].codec_hash) == (53520, "llama", "seed")
    with pytest.raises(UserError, match="1 × 8192 codes, the published vocabulary 1 × 1024"):
        vocabulary.from_config({"published": "chat"}, LlamaText(), {"speech": Codec()})
    with pytest.raises(UserError, match="needs LLaMA's text model with 32000 pieces"):
        vocabulary.from_config({"published": "chat"}, tokenizer)
    with pytest.raises(UserError, match="choose 'chat' or 'base'"):
        vocabulary.published("sft")


def test_unusable_configs_are_explained(tokenizer):
    speech = SMALL["modalities"][1]
    with pytest.raises(UserError, match="'speech' is there twice"):
        vocabulary.from_config({"modalities": [speech, speech]}, tokenizer)
    with pytest.raises(UserError, match="'<sosp>' is used for two entries"):
        vocabulary.from_config(
            {"modalities": [speech, {**speech, "name": "voice", "start_tag": "<sosp>"}]}, tokenizer
        )
    with pytest.raises(UserError, match="unknown or missing field"):
        vocabulary.from_config({"modalities": [{**speech, "colour": 1}]}, tokenizer)


def test_saving_and_loading_keeps_everything(tmp_path, small):
    small.save(tmp_path / "vocabulary.json")
    loaded = vocabulary.Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == small
    assert loaded.hash == small.hash
    assert list(loaded.modalities) == list(small.modalities)
    small.check(loaded)


def test_a_missing_or_damaged_manifest_is_explained(tmp_path):
    with pytest.raises(UserError, match="no vocabulary"):
        vocabulary.Vocabulary.load(tmp_path / "vocabulary.json")
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(UserError, match="is not a vocabulary"):
        vocabulary.Vocabulary.load(tmp_path / "vocabulary.json")
    (tmp_path / "vocabulary.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        vocabulary.Vocabulary.load(tmp_path / "vocabulary.json")


def test_two_vocabularies_that_differ_name_the_entry(small):
    speech = dataclasses.replace(small.modalities["speech"], codec_hash="0123")
    other = dataclasses.replace(small, modalities={**small.modalities, "speech": speech})
    with pytest.raises(UserError, match=r"speech\.codec_hash is None in the data and '0123' in the model"):
        small.check(other, "the data", "the model")
    with pytest.raises(UserError, match="modalities is"):
        small.check(small.extend([vocabulary.make_modality("smell", 1, 5)]))
    assert small.hash != other.hash
