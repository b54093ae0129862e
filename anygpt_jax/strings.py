"""The original string format, `<sosp><🗣️12><🗣️7><eosp>`: to ids or codes and back.

Only for trusted files: in these strings a tag is a control token, wherever it stands.
"""

import re
from collections.abc import Iterable

import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax.prompts import CONTROL, Segment
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import Vocabulary


def codes_to_string(vocabulary: Vocabulary, modality: str, codes: np.ndarray) -> str:
    """Codes [F, K] as start tag, code tokens with nothing between them, end tag."""
    entry = vocabulary.modality(modality)
    numbers = vocabulary.codes_to_ids(modality, codes) - entry.first_id
    return entry.start_tag + "".join(entry.code_format.format(n=n) for n in numbers) + entry.end_tag


def string_to_codes(vocabulary: Vocabulary, modality: str, string: str) -> np.ndarray:
    """Inverse of `codes_to_string`: int32 [F, K]; a UserError names what does not fit."""
    entry = vocabulary.modality(modality)
    if not (string.startswith(entry.start_tag) and string.endswith(entry.end_tag)):
        raise UserError(
            f"A {modality} string must be {entry.start_tag}…{entry.end_tag}; this is {_short(string)}."
        )
    body = string[len(entry.start_tag) : -len(entry.end_tag)]
    prefix, suffix = map(re.escape, entry.code_format.split("{n}"))
    # A number has one spelling, so that strings and codes are in one-to-one correspondence.
    token = f"{prefix}(0|[1-9][0-9]*){suffix}"
    if not re.fullmatch(f"(?:{token})*", body):
        raise UserError(
            f"Between {entry.start_tag} and {entry.end_tag} stands more than codes: {_short(body)}."
        )
    numbers = np.array(re.findall(token, body), dtype=np.int64)
    return vocabulary.ids_to_codes(modality, numbers + entry.first_id)


def to_segments(vocabulary: Vocabulary, string: str) -> tuple[Segment, ...]:
    """Splits a string into text, codes and control tokens; a UserError names a tag without its partner."""
    modalities = {entry.start_tag: (name, entry.end_tag) for name, entry in vocabulary.modalities.items()}
    segments: list[Segment] = []
    start = position = 0
    for match in _fixed_pattern(vocabulary).finditer(string):
        if match.start() < position:  # inside a block that has been read
            continue
        if match.start() > start:
            segments.append(Segment(string[start : match.start()]))
        if match[0] in vocabulary.control:
            segments.append(Segment(match[0], CONTROL))
            start = position = match.end()
            continue
        name, end_tag = modalities.get(match[0], ("", ""))
        end = string.find(end_tag, match.end()) if name else -1
        if end < 0:
            raise UserError(f"The tag {match[0]} at character {match.start()} has no partner.")
        start = position = end + len(end_tag)
        segments.append(Segment(string_to_codes(vocabulary, name, string[match.start() : start]), name))
    if string[start:]:
        segments.append(Segment(string[start:]))
    return tuple(segments)


def encode(vocabulary: Vocabulary, text_tokenizer: TextTokenizer, string: str) -> np.ndarray:
    """Ids int32 [N] of a string of the original format, without `<s>` and `</s>`.

    The string is split at added tokens (longest first); white space beside them is kept, and every run of
    text is encoded on its own with SentencePiece's dummy prefix (LLaMA's legacy behaviour).
    """
    tokens = vocabulary.token_strings
    pattern = _token_pattern(vocabulary)
    ids: list[int] = []
    start = 0
    for match in pattern.finditer(string):
        if match[0] not in tokens:  # a code beyond the vocabulary's last one is ordinary text
            continue
        ids += text_tokenizer.encode_run(string[start : match.start()])
        ids.append(tokens[match[0]])
        start = match.end()
    ids += text_tokenizer.encode_run(string[start:])
    return np.array(ids, np.int32)


def decode(
    vocabulary: Vocabulary, text_tokenizer: TextTokenizer, ids: Iterable[int], separator: str = ""
) -> str:
    """The string of ids; `separator` stands between added tokens and runs of text.

    The original programs print with a space there, `[MMGPT] : a cat <eos>`; with none, white space is as
    encoded.
    """
    names = vocabulary.token_names
    parts: list[str] = []
    run: list[int] = []
    for number in [*map(int, ids), None]:
        if number is not None and number not in names:
            run.append(number)
            continue
        if run:
            parts.append(text_tokenizer.decode(run))
            run = []
        if number is not None:
            parts.append(names[number])
    return separator.join(parts)


def _token_pattern(vocabulary: Vocabulary) -> re.Pattern:
    """Any added token."""
    codes = []
    for entry in vocabulary.modalities.values():
        prefix, suffix = map(re.escape, entry.code_format.split("{n}"))
        codes.append(f"{prefix}(?:0|[1-9][0-9]*){suffix}")
    return re.compile("|".join([_fixed_pattern(vocabulary).pattern, *codes]))


def _fixed_pattern(vocabulary: Vocabulary) -> re.Pattern:
    """Any control token or tag, the longest first."""
    tags = [tag for entry in vocabulary.modalities.values() for tag in (entry.start_tag, entry.end_tag)]
    return re.compile("|".join(map(re.escape, sorted([*vocabulary.control, *tags], key=len, reverse=True))))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
