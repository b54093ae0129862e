"""The two kinds of records on disk, both in ArrayRecord files: token items and packed rows.

A token item is one text with one medium's codes. A packed row is a training example of several whole
documents:

    uint16 documents | uint16 bytes per token | uint32 tokens
    uint32 [documents] lengths | uint16 [documents] direction ids
    uint8 [⌈tokens / 8⌉] bits: is an answer | uint16 or uint32 [tokens] ids
"""

import contextlib
import dataclasses
import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from anygpt_tokenizers.cli import UserError
from array_record.python.array_record_module import ArrayRecordWriter

from anygpt_jax.prompts import ANSWER, PROMPT, Document

SUFFIX = ".arrayrecord"
_ROW_HEADER = struct.Struct("<HHI")
_ITEM_HEADER = struct.Struct("<IBHI")


@dataclasses.dataclass(frozen=True)
class TokenItem:
    """A text and the codes int32 [F, K] of one medium."""

    id: str
    text: str
    modality: str
    codes: np.ndarray

    def to_bytes(self) -> bytes:
        """JSON header, then the codes in two bytes each where they fit."""
        header = json.dumps([self.id, self.text, self.modality], ensure_ascii=False).encode()
        wide = self.codes.size and self.codes.max() > 0xFFFF
        dtype = np.dtype("<u4" if wide else "<u2")
        frames, codebooks = self.codes.shape
        head = _ITEM_HEADER.pack(len(header), dtype.itemsize, codebooks, frames)
        return head + header + self.codes.astype(dtype).tobytes()

    @classmethod
    def from_bytes(cls, record: bytes) -> "TokenItem":
        """Inverse of `to_bytes`."""
        length, itemsize, codebooks, frames = _ITEM_HEADER.unpack_from(record)
        start = _ITEM_HEADER.size
        fields = json.loads(record[start : start + length])
        codes = np.frombuffer(record, f"<u{itemsize}", offset=start + length).reshape(frames, codebooks)
        return cls(*fields, codes.astype(np.int32))


def encode_row(documents: Sequence[Document], directions: dict[str, int]) -> bytes:
    """A packed row of whole documents; `directions` maps names to ids."""
    ids = np.concatenate([document.ids for document in documents])
    roles = np.concatenate([document.roles for document in documents])
    dtype = np.dtype("<u2" if ids.max() <= 0xFFFF else "<u4")
    return b"".join(
        (
            _ROW_HEADER.pack(len(documents), dtype.itemsize, len(ids)),
            np.array([len(document.ids) for document in documents], "<u4").tobytes(),
            np.array([directions[document.direction] for document in documents], "<u2").tobytes(),
            np.packbits(roles == ANSWER).tobytes(),
            ids.astype(dtype).tobytes(),
        )
    )


def decode_row(record: bytes, seq_len: int) -> dict[str, np.ndarray]:
    """A packed row as int32 arrays [seq_len]: tokens, targets, segment_ids, positions, target_roles,
    directions.

    `targets` is the next token of the same document, else 0; `segment_ids` counts documents from 1 and is 0
    on padding; `positions` restart at each document; `target_roles` is 0 where there is no target, else the
    target's role (1 prompt, 2 answer).
    """
    documents, itemsize, size = _ROW_HEADER.unpack_from(record)
    start = _ROW_HEADER.size
    lengths = np.frombuffer(record, "<u4", documents, start)
    start += 4 * documents
    directions = np.frombuffer(record, "<u2", documents, start)
    start += 2 * documents
    answers = np.unpackbits(np.frombuffer(record, np.uint8, (size + 7) // 8, start), count=size)
    ids = np.frombuffer(record, f"<u{itemsize}", size, start + (size + 7) // 8)

    names = ("tokens", "targets", "segment_ids", "positions", "target_roles", "directions")
    row = {name: np.zeros(seq_len, np.int32) for name in names}
    ends = np.cumsum(lengths)
    row["tokens"][:size] = ids
    row["segment_ids"][:size] = np.repeat(np.arange(1, documents + 1), lengths)
    row["positions"][:size] = np.arange(size) - np.repeat(ends - lengths, lengths)
    row["directions"][:size] = np.repeat(directions, lengths)
    row["targets"][: size - 1] = ids[1:]
    row["target_roles"][: size - 1] = np.where(answers[1:], ANSWER, PROMPT)
    row["targets"][ends - 1] = 0
    row["target_roles"][ends - 1] = 0
    return row


def write_records(path: str | os.PathLike, records: Sequence[bytes]) -> None:
    """Writes an ArrayRecord file for access by index; it appears under its name only when complete."""
    partial = f"{os.fspath(path)}.partial"
    # One record per group: every read is of a random record.
    writer = ArrayRecordWriter(partial, "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    os.replace(partial, path)


def open_records(directory: str | os.PathLike) -> "Records":
    """All records of a directory's ArrayRecord files, in the order of their names.

    UserError if there are none, or if a file is damaged: now if it is cut, else when the record is read.
    """
    paths = sorted(str(path) for path in Path(directory).glob(f"*{SUFFIX}"))
    if not paths:
        raise UserError(f"There are no records ({SUFFIX} files) in {os.fspath(directory)!r}.")
    return Records(paths)


class Records:
    """A random-access source of Grain's that says which file is damaged."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        with self._naming_what_is_damaged():
            self._source = grain.sources.ArrayRecordDataSource(paths)
            self._size = len(self._source)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> bytes:
        with self._naming_what_is_damaged(index):
            return self._source[index]

    @contextlib.contextmanager
    def _naming_what_is_damaged(self, index: int | None = None) -> Iterator[None]:
        """While the files are opened, or the record `index` of all is read."""
        try:
            yield
        except RuntimeError as error:
            path, reason = self._damaged(index), str(error).splitlines()[0]
            raise UserError(
                f"{path} is damaged ({reason}); copy it again, or tokenise or pack again."
            ) from error

    def _damaged(self, index: int | None) -> str:
        """The first file that cannot be opened, or the one of a record."""
        for path in self._paths:
            try:
                size = len(grain.sources.ArrayRecordDataSource([path]))
            except RuntimeError:
                return path
            if index is not None and index < size:
                return path
            index = index and index - size
        return os.path.dirname(self._paths[0])


def read_items(directory: str | os.PathLike) -> Iterator[TokenItem]:
    """The token items of a directory, in order."""
    source = open_records(directory)
    for index in range(len(source)):
        yield TokenItem.from_bytes(source[index])
