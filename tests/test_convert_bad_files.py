"""A Hugging Face directory with a damaged or odd file: one sentence names it, and nothing is left behind."""

import json
import os
import shutil

import numpy as np
import pytest
import random_llama
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import SafetensorsFile

from anygpt_jax.convert import import_hf, tokens


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory in two shards with speech codes."""
    directory = tmp_path_factory.mktemp("llama") / "hf"
    vocab = random_llama.media_vocabulary()
    random_llama.write_llama(directory, vocab, random_llama.decoder_config(vocab))
    return directory


def copy_of(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "hf")
    return tmp_path / "hf"


DOWN = "model.layers.1.mlp.down_proj.weight"


def truncate(directory):
    for path in directory.glob("*.safetensors"):
        file = SafetensorsFile(path)
        if "model.layers.1.mlp.up_proj.weight" in file.shapes:
            last = list(file.shapes)[-1]
            os.truncate(path, path.stat().st_size - 8)
            return f"cut off inside tensor {last}"
    raise AssertionError


def edit_header(change):
    def edit(directory):
        for path in directory.glob("*.safetensors"):
            raw = path.read_bytes()
            length = int.from_bytes(raw[:8], "little")
            header = json.loads(raw[8 : 8 + length])
            if DOWN in header:
                message = change(header)
                text = json.dumps(header).encode()
                path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
                return message
        raise AssertionError

    return edit


def mislabel(header):
    header[DOWN]["dtype"] = "F16"
    return f"tensor {DOWN} has .* bytes, but F16"


def reshape(header):
    header[DOWN]["shape"] = header[DOWN]["shape"][::-1]
    return f"tensor {DOWN} has shape"


def remove(header):
    del header[DOWN]
    return f"the index says that .* holds {DOWN}, and it does not"


def add_bias(directory):
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.0.self_attn.q_proj.bias"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    return "q_proj.bias has no place"


def no_file(directory):
    next(directory.glob("*.safetensors")).unlink()
    return "which holds .*, is missing"


def not_finite(directory):
    path = sorted(directory.glob("*.safetensors"))[0]
    raw = bytearray(path.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    return f"tensor {list(SafetensorsFile(path).shapes)[-1]} holds values that are not finite"


def not_safetensors(directory):
    sorted(directory.glob("*.safetensors"))[0].write_bytes(b"PK\x03\x04" + b"x" * 100)
    return "is no safetensors file"


def swap_tokens(directory):
    path = directory / "added_tokens.json"
    added = json.loads(path.read_text())
    one, two = "<\U0001f5e3\ufe0f7>", "<\U0001f5e3\ufe0f8>"
    added[one], added[two] = added[two], added[one]
    path.write_text(json.dumps(added))
    return f"should be '{one}' of the speech codes, and the files say '{two}'"


def fewer_rows(directory):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 500}))
    return "counts 500 vocabulary rows"


def entry(message=f"entry of tensor {DOWN} is malformed", **changes):
    """An edit of a tensor's entry in a safetensors header."""

    def change(header):
        header[DOWN] |= changes
        return message

    return edit_header(change)


def overlap(header):
    one, two = [name for name in header if name.startswith("model.layers")][:2]
    size = header[two]["data_offsets"][1] - header[two]["data_offsets"][0]
    start = header[one]["data_offsets"][0]
    header[two]["data_offsets"] = [start, start + size]
    return "lies within another"


def setting(message, **changes):
    """An edit of config.json."""

    def edit(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return message

    return edit


def replaced(file, value, message):
    """Another JSON file in place of one; added_tokens.json makes way for tokenizer_config.json."""

    def edit(directory):
        if file == tokens.SETTINGS:
            (directory / tokens.ADDED).unlink()
        (directory / file).write_text(json.dumps(value))
        return message

    return edit


INDEX = "model.safetensors.index.json"
ODD_FILES = [
    replaced("config.json", [], "config.json holds no JSON object"),
    setting("rotary scaling 'linear'", rope_scaling={"type": "linear"}),
    setting("rope_scaling is 'linear'; it must be an object or null", rope_scaling="linear"),
    setting("hidden_size is None; it must be a whole number", hidden_size=None),
    setting("hidden_size is '64'; it must be a whole number", hidden_size="64"),
    setting("num_attention_heads is 0; it must be", num_attention_heads=0),
    setting("num_attention_heads 4 is no multiple of num_key_value_heads 3", num_key_value_heads=3),
    setting("num_key_value_heads is 0; it must be", num_key_value_heads=0),
    setting("head_dim is 15; rotary positions need an even number", head_dim=15),
    setting("num_hidden_layers is 1000000000000; it must be", num_hidden_layers=10**12),
    setting("rms_norm_eps is '1e-6'; it must be a positive number", rms_norm_eps="1e-6"),
    setting("rotary scaling 'yarn'", rope_scaling={"type": "default"}, rope_parameters={"rope_type": "yarn"}),
    setting("rope_theta is nan; it must be a positive number", rope_theta=float("nan")),
    setting("rope_theta is 0; it must be a positive number", rope_theta=0),
    setting("rope_parameters.rope_theta is '1'; it", rope_parameters={"rope_theta": "1"}),
    setting(
        "says rope_theta = 10000.0 and rope_parameters.rope_theta = 500000.0; keep the one",
        rope_theta=10_000,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    ),
    setting("tie_word_embeddings, but lm_head.weight is not model.embed", tie_word_embeddings=True),
    replaced(tokens.ADDED, [], "added_tokens.json holds no JSON object"),
    replaced(tokens.ADDED, {"<a>": True}, "added_tokens.json is no map of tokens to ids"),
    replaced(tokens.SETTINGS, [], "tokenizer_config.json holds no JSON object"),
    replaced(tokens.SETTINGS, {"added_tokens_decoder": [1]}, "is no map of ids to tokens"),
    replaced(tokens.SETTINGS, {"added_tokens_decoder": {"x": {"content": "y"}}}, "is no map of ids"),
    replaced(tokens.SETTINGS, {"added_tokens_decoder": {"9": {}}}, "is no map of ids to tokens"),
    replaced(INDEX, [], "index.json holds no JSON object"),
    replaced(INDEX, {"weight_map": []}, "has no weight_map"),
    replaced(INDEX, {"weight_map": {DOWN: 3}}, f"gives {DOWN} no file's name"),
    replaced(INDEX, {"weight_map": {}}, "tensor .* is missing"),
    entry(data_offsets=[0, 1, 2]),
    entry(data_offsets=["0", "4"]),
    entry(data_offsets=[-4, 24572]),
    entry(data_offsets=None),
    entry(shape=[-64, -96]),
    entry(shape="64"),
    entry(shape=[64.0, 96.0]),
    entry(dtype=["F32"]),
    entry(f"tensor {DOWN} has -4 bytes", data_offsets=[8, 4]),
    edit_header(overlap),
]


@pytest.mark.parametrize(
    "damage",
    [
        *ODD_FILES,
        truncate,
        edit_header(mislabel),
        edit_header(reshape),
        edit_header(remove),
        add_bias,
        no_file,
        not_finite,
        not_safetensors,
        swap_tokens,
        fewer_rows,
    ],
)
def test_a_bad_or_odd_file_is_named_in_one_sentence_and_nothing_is_left_behind(llama, tmp_path, damage):
    directory = copy_of(llama, tmp_path)
    message = damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        import_hf(directory, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
