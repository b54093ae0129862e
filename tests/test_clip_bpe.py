"""CLIP's tokenizer: words, merges, control tokens and lengths; equal to transformers' (extra `parity`)."""

import dataclasses
import json

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_bpe import BYTE_CHARACTERS, ClipBpe, split_words

MERGES = [
    ("a", "t</w>"),
    ("c", "at</w>"),
    ("t", "h"),
    ("th", "e</w>"),
    ("'", "s</w>"),
    ("Ã", "©</w>"),
    ("1", "2"),
]
TEXTS = [
    "",
    "a cat",
    "The CAT's hat, isn't it?",
    "  café\tCafe\u0301\n ",
    "12 cats + 3 = !!'s 一二 ½ naïve_word",
    "🙂🙂 emoji; I'LL you've we'd 'quoted'",
    "the " * 30,
]


def write_files(folder) -> dict[str, int]:
    """vocab.json and merges.txt with all bytes and a few merges."""
    pieces = [*BYTE_CHARACTERS, *(character + "</w>" for character in BYTE_CHARACTERS)]
    pieces += [first + second for first, second in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return vocabulary


def tokenizer(folder) -> ClipBpe:
    vocabulary = write_files(folder)
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    return ClipBpe.from_files(folder, start, end, vocabulary["!"], 16)


def test_text_falls_into_letters_digits_contractions_and_the_rest():
    assert split_words("it's 12 o'clock!?") == ["it", "'s", "1", "2", "o", "'", "clock", "!?"]


def test_pieces_are_merged_in_the_order_of_the_merges(tmp_path):
    bpe = tokenizer(tmp_path)
    names = {number: piece for piece, number in bpe.vocabulary.items()}
    assert [names[token] for token in bpe.tokens("The cat")] == ["the</w>", "cat</w>"]
    assert [names[token] for token in bpe.tokens("that")] == ["th", "at</w>"]


def test_prompts_begin_end_and_are_padded_or_cut(tmp_path):
    bpe = tokenizer(tmp_path)
    rows = bpe(["cat", "the " * 30])
    assert rows.shape == (2, 16) and rows.dtype == np.int32
    assert rows[0, [0, 2]].tolist() == [bpe.begin, bpe.end] and (rows[0, 3:] == bpe.pad).all()
    assert rows[1, 0] == bpe.begin and rows[1, -1] == bpe.end and len(set(rows[1, 1:-1])) == 1


def test_control_tokens_in_a_text_are_ordinary_characters(tmp_path):
    bpe = tokenizer(tmp_path)
    assert bpe.end not in bpe.tokens("<|endoftext|>") and len(bpe.tokens("<|endoftext|>")) == 13


def test_a_folder_without_files_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no tokenizer for prompts"):
        ClipBpe.from_files(tmp_path, 0, 1, 2, 16)


@pytest.mark.parity
def test_tokens_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    bpe = tokenizer(tmp_path)
    bpe = dataclasses.replace(bpe, pad=bpe.end)  # with "!" for it, transformers looks for "!" in the texts
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    original = transformers.CLIPTokenizerFast(*files)
    expected = original(TEXTS, padding="max_length", max_length=16, truncation=True).input_ids
    assert bpe(TEXTS).tolist() == expected
