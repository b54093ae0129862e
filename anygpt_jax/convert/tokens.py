"""Which id means what, from and to the token files of a Hugging Face directory."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from anygpt_tokenizers.cli import UserError

from anygpt_jax import vocabulary
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import Modality, Vocabulary

TEXT_MODEL, ADDED, SETTINGS = "tokenizer.model", "added_tokens.json", "tokenizer_config.json"
PUBLISHED = ("base", "chat")


def read_json(path: str) -> dict[str, Any]:
    """A JSON file's object; UserError if it is missing, damaged or another kind of value."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value


def added_tokens(source: str, text_size: int) -> dict[str, int]:
    """Token → id of everything beyond the text model's pieces, by id.

    From added_tokens.json, or where that is missing from tokenizer_config.json (newer writers).
    """
    path, settings = os.path.join(source, ADDED), os.path.join(source, SETTINGS)
    found: dict[str, int] = {}
    if os.path.exists(path):
        found = read_json(path)
    elif os.path.exists(settings):
        path = settings
        decoder = read_json(settings).get("added_tokens_decoder") or {}
        try:
            found = {entry["content"]: int(number) for number, entry in decoder.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: added_tokens_decoder is no map of ids to tokens.") from error
    if not all(type(number) is int and isinstance(token, str) for token, number in found.items()):
        raise UserError(f"{path} is no map of tokens to ids.")
    by_id = sorted((number, token) for token, number in found.items() if number >= text_size)
    for expected, (number, token) in enumerate(by_id, start=text_size):
        if number != expected:
            raise UserError(f"{path}: no token has id {expected}; {token!r} is the next, with id {number}.")
    return {token: number for number, token in by_id}


def vocabulary_of(source: str, tokenizer: TextTokenizer) -> Vocabulary:
    """The vocabulary that a directory's own files describe.

    A run of code tokens (`<👀0>` …) with its two tags becomes a modality with the published codec's facts,
    any other token a control token. Of LLaMA-2: text alone.
    """
    tokens = list(added_tokens(source, tokenizer.size))
    known = vocabulary.published("chat").modalities.values()
    first_codes = {entry.code_format.format(n=0): entry for entry in known}
    entries: list[str | Modality] = []
    position = 0
    while position < len(tokens):
        entry = first_codes.get(tokens[position])
        if entry is None:
            entries.append(tokens[position])
            position += 1
            continue
        block = [entry.code_format.format(n=n) for n in range(entry.num_codes)]
        block += [entry.start_tag, entry.end_tag]
        for offset, token in enumerate(block):
            here = tokens[position + offset] if position + offset < len(tokens) else "nothing"
            if here != token:
                raise UserError(
                    f"{source}: id {tokenizer.size + position + offset} should be {token!r} of the "
                    f"{entry.name} codes, and the files say {here!r}."
                )
        entries.append(entry)
        position += len(block)
    found = vocabulary.from_text_model(tokenizer.size, tokenizer.hash).extend(entries)
    for name in PUBLISHED:
        layout = vocabulary.published(name, tokenizer.hash)
        if (found.text_size, found.size) == (layout.text_size, layout.size):
            check_rows(found, layout, source, f"the published {name} layout")
    return found


def check_rows(ours: Vocabulary, other: Vocabulary, here: str, there: str) -> None:
    """UserError naming the first id that means something else in the two vocabularies."""
    if ours.text_size != other.text_size:
        raise UserError(f"{here} has {ours.text_size} pieces of text and {there} {other.text_size}.")
    for number in range(ours.text_size, max(ours.size, other.size)):
        a, b = ours.token_names.get(number), other.token_names.get(number)
        if a != b:
            raise UserError(f"Id {number} is {a!r} in {here} and {b!r} in {there}.")


def named_vocabulary(name: str, tokenizer: TextTokenizer) -> Vocabulary:
    """`name`: "base", "chat", a vocabulary.json, or a directory with one (packed data, a checkpoint)."""
    if name in PUBLISHED:
        found = vocabulary.published(name, tokenizer.hash)
    else:
        path = os.path.join(name, "vocabulary.json") if os.path.isdir(name) else name
        found = Vocabulary.load(path)
    if found.text_size != tokenizer.size or found.text_model_hash not in (None, tokenizer.hash):
        raise UserError(
            f"The vocabulary {name!r} needs a text model of {found.text_size} pieces with hash "
            f"{found.text_model_hash}; this one has {tokenizer.size} and {tokenizer.hash}."
        )
    return dataclasses.replace(found, text_model_hash=tokenizer.hash)


def write_tokenizer(out: str, vocab: Vocabulary, tokenizer: TextTokenizer, max_positions: int) -> None:
    """The files that transformers' LLaMA tokenizer loads, with the published checkpoint's settings."""
    tokenizer.save(os.path.join(out, TEXT_MODEL))
    tokens = {token: number for number, token in sorted(vocab.token_names.items())}
    _write_json(os.path.join(out, ADDED), tokens)
    reserved = {"<unk>": vocabulary.PAD_ID, "<s>": vocabulary.BOS_ID, "</s>": vocabulary.EOS_ID}
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    decoder = {
        str(number): {"content": token, **plain, "special": token in reserved}
        for token, number in (reserved | tokens).items()
    }
    _write_json(
        os.path.join(out, SETTINGS),
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": True,
            "clean_up_tokenization_spaces": False,
            "spaces_between_special_tokens": False,
            "model_max_length": max_positions,
            "padding_side": "left",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "added_tokens_decoder": decoder,
        },
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    _write_json(os.path.join(out, "special_tokens_map.json"), special)


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
