"""Where documents come from: token directories, and files of the original string format."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax import strings
from anygpt_jax.data import packing, records, tokenizing
from anygpt_jax.data.manifest import Skipped
from anygpt_jax.data.records import TokenItem
from anygpt_jax.prompts import (
    ASSISTANT_ROLE,
    Document,
    Instructions,
    Message,
    chat_document,
    pair_document,
)
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import TEXT, Vocabulary

CHAT = "chat"


def pack_tokens(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    instructions: Instructions,
    seq_len: int,
    repeats: int = 1,
    seed: int = 0,
    chat_template: str = "mmgpt-eos",
) -> dict[str, Any]:
    """Packs sources into a directory (see packing.py) and returns its meta.json.

    Args:
      sources: token directories and .jsonl files of the original string format (trusted). `name=path` packs
        the source as the data set `name`; otherwise a pair's data set is its modality, and a chat's is
        "chat".
      repeats: how often each pair is packed in each direction, every time with an instruction drawn anew.

    Raises:
      UserError: a source is missing or unfinished, or its codes are of another codec than the vocabulary's.
    """
    maker = _DocumentMaker(vocabulary, text_tokenizer, instructions, repeats, seed, chat_template)
    opened = [_open(str(source), vocabulary) for source in sources]
    documents = (
        (name or dataset, origin, document)
        for index, (name, path) in enumerate(opened)
        for dataset, origin, document in maker.documents(index, path)
    )
    total = sum(sum(tokenizing.read_meta(path)["items"].values()) for _, path in opened if path.is_dir())
    return packing.pack_documents(
        documents, out, vocabulary, text_tokenizer, seq_len, seed, total * 2 * repeats or None
    )


def read_original(
    path: str | os.PathLike, vocabulary: Vocabulary
) -> Iterator[TokenItem | list[Message] | Skipped]:
    """Reads a .jsonl of the original string format: of each line its pair, its conversation or its fault.

    A pair has `text` and one modality's tagged string; a conversation is a list of {role, message}, perhaps
    in one more list, and its leading assistant message is dropped. For trusted files only: tags become
    control tokens.
    """
    name = Path(path).name
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{name}:{number}"
            if not line.strip():
                continue
            try:
                yield _parse_original(where, json.loads(line), vocabulary)
            except UserError as error:
                yield Skipped(where, "not of the original format", str(error))
            except (KeyError, TypeError, ValueError) as error:
                yield Skipped(where, "not of the original format", f"{type(error).__name__}: {error}")


class _DocumentMaker:
    """Makes the training documents of pairs and chats."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        instructions: Instructions,
        repeats: int,
        seed: int,
        chat_template: str,
    ):
        self._vocabulary, self._tokenizer, self._template = vocabulary, text_tokenizer, chat_template
        self._repeats, self._seed = repeats, seed
        self._lists = {
            (source, target): instructions.of(source, target)
            for name in vocabulary.modalities
            for source, target in ((name, TEXT), (TEXT, name))
        }

    def documents(self, source_index: int, path: Path) -> Iterator[tuple[str, str, Document | Skipped]]:
        """(data set, origin, document) of one source; the origin is named if the document is skipped."""
        rng = np.random.default_rng((self._seed, source_index))
        rows = records.read_items(path) if path.is_dir() else read_original(path, self._vocabulary)
        for row in rows:
            if isinstance(row, TokenItem):
                for document in self._of_pair(row, rng):
                    yield row.modality, f"{path.name}: {row.id}", document
            else:
                yield CHAT, path.name, row if isinstance(row, Skipped) else self._of_chat(path, row)

    def _of_chat(self, path: Path, messages: list[Message]) -> Document | Skipped:
        try:
            return chat_document(self._vocabulary, self._tokenizer, messages, self._template)
        except UserError as error:
            return Skipped(path.name, "unusable conversation", str(error))

    def _of_pair(self, item: TokenItem, rng: np.random.Generator) -> Iterator[Document | Skipped]:
        for source, target in ((item.modality, TEXT), (TEXT, item.modality)):
            choices = self._lists[source, target]
            for _ in range(self._repeats):
                instruction = choices[rng.integers(len(choices))]
                yield pair_document(
                    self._vocabulary, self._tokenizer, source, target, item.text, item.codes, instruction
                )


def _open(source: str, vocabulary: Vocabulary) -> tuple[str | None, Path]:
    """(data set name or None, path) of `path` or `name=path`; checks that the source fits the vocabulary."""
    name, _, rest = source.partition("=")
    named = rest and not os.path.exists(source)
    path = Path(rest if named else source)
    if path.is_dir():
        _check_codecs(path, vocabulary)
    elif not path.is_file() or path.suffix != ".jsonl":
        raise UserError(f"{str(path)!r} is neither a token directory nor a .jsonl of the original format.")
    return (name if named else None), path


def _check_codecs(path: Path, vocabulary: Vocabulary) -> None:
    meta = tokenizing.read_meta(path)
    for name in meta["items"]:
        entry, facts = vocabulary.modality(name), meta["modalities"][name]
        for fact in ("codec_hash", "num_codebooks", "codebook_size"):
            wanted = getattr(entry, fact)
            if wanted is not None and facts[fact] != wanted:
                raise UserError(
                    f"The {name} tokens in {str(path)!r} have {fact} {facts[fact]!r}, "
                    f"the vocabulary {wanted!r}; tokenise again with the config's codecs, "
                    "or name the tokens' codecs in config.codecs."
                )


def _parse_original(where: str, row: dict[str, Any], vocabulary: Vocabulary) -> TokenItem | list[Message]:
    return _conversation(row, vocabulary) if "conversation" in row else _pair(where, row, vocabulary)


def _pair(where: str, row: dict[str, Any], vocabulary: Vocabulary) -> TokenItem:
    modality = next((name for name in vocabulary.modalities if name in row), None)
    if modality is None or not isinstance(row["text"], str):
        raise UserError("A pair has a text and one modality.")
    codes = strings.string_to_codes(vocabulary, modality, row[modality])
    return TokenItem(str(row.get("id", where)), row["text"], modality, codes)


def _conversation(row: dict[str, Any], vocabulary: Vocabulary) -> list[Message]:
    turns = row["conversation"]
    if turns and isinstance(turns[0], list):
        turns = turns[0]
    messages = [Message(turn["role"], strings.to_segments(vocabulary, turn["message"])) for turn in turns]
    return messages[1:] if messages and messages[0].role == ASSISTANT_ROLE else messages
