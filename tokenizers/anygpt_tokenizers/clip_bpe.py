"""CLIP's tokenizer (Radford et al. 2021): lower-cased text as byte pairs, from vocab.json and merges.txt.

Control tokens are never looked for in a text: "<|endoftext|>" in a prompt is thirteen ordinary characters.
"""

import dataclasses
import itertools
import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anygpt_tokenizers.cli import UserError

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
END_OF_WORD = "</w>"


@dataclasses.dataclass(frozen=True)
class ClipBpe:
    """Prompts -> tokens.

    Attributes:
      vocabulary: token -> number.
      ranks: pair of pieces -> when it is merged, the lowest first.
      begin, end, pad: numbers of the control tokens.
      length: tokens of every prompt.
    """

    vocabulary: dict[str, int]
    ranks: dict[tuple[str, str], int]
    begin: int
    end: int
    pad: int
    length: int

    @classmethod
    def from_files(cls, folder: str | os.PathLike, begin: int, end: int, pad: int, length: int) -> "ClipBpe":
        """Reads vocab.json and merges.txt; UserError if they aren't there or can't be read."""
        folder = Path(folder)
        try:
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} has no tokenizer for prompts: {error}.") from error
        pairs = [tuple(line.split()) for line in lines if not line.startswith("#version") and line.strip()]
        return cls(vocabulary, {pair: rank for rank, pair in enumerate(pairs)}, begin, end, pad, length)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """int32 [len(prompts), length]: begin, at most length - 2 tokens of the text, end, padding."""
        rows = np.full((len(prompts), self.length), self.pad, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            tokens = [self.begin, *self.tokens(prompt)[: self.length - 2], self.end]
            row[: len(tokens)] = tokens
        return rows

    def tokens(self, text: str) -> list[int]:
        """The numbers of a text's pieces; `end` stands for one that the vocabulary lacks (as in CLIP)."""
        text = unicodedata.normalize("NFC", text).lower()
        return [
            self.vocabulary.get(piece, self.end) for word in split_words(text) for piece in self._pieces(word)
        ]

    def _pieces(self, word: str) -> list[str]:
        pieces = [BYTE_CHARACTERS[byte] for byte in word.encode()]
        pieces[-1] += END_OF_WORD
        while len(pieces) > 1:
            pairs = itertools.pairwise(pieces)
            rank, at = min((self.ranks.get(pair, len(self.ranks)), at) for at, pair in enumerate(pairs))
            if rank == len(self.ranks):
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces


def split_words(text: str) -> list[str]:
    """English contractions, runs of letters, single digits, and runs of whatever else is not a space."""
    words, at = [], 0
    while at < len(text):
        kind = _kind(text[at])
        end = at + 1
        contraction = next((part for part in CONTRACTIONS if text.startswith(part, at)), None)
        if contraction:
            end = at + len(contraction)
        elif kind in ("letter", "other"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            words.append(text[at:end])
        at = end
    return words


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "other")


def _byte_characters() -> list[str]:
    """A printable character for every byte: itself where it has one, else the next free one from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
