"""Documents to rows of one length: best fit, and no document is ever cut.

A packed directory:

    vocabulary.json, text.model       what the ids mean
    meta.json                         seq_len, directions, and per data set its counts
    skipped.jsonl                     documents left out, with the reason
    <data set>/data-00000.arrayrecord …   rows (see records.py)
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anygpt_tokenizers.cli import UserError
from tqdm import tqdm

from anygpt_jax.data import manifest, records
from anygpt_jax.data.manifest import Skipped
from anygpt_jax.prompts import ANSWER, Document
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import Vocabulary

META, VOCABULARY, TEXT_MODEL, SKIPPED = "meta.json", "vocabulary.json", "text.model", "skipped.jsonl"
FORMAT_VERSION = 1
WINDOW = 65_536  # documents packed against each other at a time


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of document indices with total length ≤ capacity: best-fit decreasing.

    Every index occurs exactly once. Of equally long documents the earlier is placed first. Raises ValueError
    if a length is not in 1..capacity.
    """
    rows: list[list[int]] = []
    # Open rows by free space; bit s of `spaces` says that some row has s tokens free, so that the
    # tightest row with room is the lowest set bit from the document's length on.
    free: dict[int, list[int]] = defaultdict(list)
    spaces = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"document {index} has {length} tokens; a row holds 1 to {capacity}")
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = free[space].pop()
            if not free[space]:
                spaces &= ~(1 << space)
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        rest = space - length
        if rest:
            free[rest].append(row)
            spaces |= 1 << rest
    return rows


def pack_documents(
    documents: Iterable[tuple[str, str, Document | Skipped]],
    out: str | os.PathLike,
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    seq_len: int,
    seed: int = 0,
    total: int | None = None,
    window: int = WINDOW,
) -> dict[str, Any]:
    """Packs (data set name, origin, document) triples into a new directory; returns the content of meta.json.

    Documents longer than `seq_len` and Skipped entries are counted and listed. Each data set is packed by
    itself, in windows of so many documents; row order and the order within a row are random (`seed`). The
    directory appears when it is complete; an existing packed directory there is replaced. `total` is for the
    progress bar.
    """
    out = Path(out)
    if out.exists() and not (out / META).is_file():
        raise UserError(f"{str(out)!r} exists and is not packed data; give the name of a new directory.")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    directions = {name: index for index, name in enumerate(vocabulary.directions())}
    writers: dict[str, _DatasetWriter] = {}
    skipped: list[Skipped] = []
    longest = 0  # of those that are longer than a row
    for name, origin, document in tqdm(documents, desc="pack", unit="document", total=total):
        if isinstance(document, Skipped):
            skipped.append(document)
        elif len(document.ids) > seq_len:
            detail = f"{len(document.ids)} tokens, a row has {seq_len}"
            skipped.append(Skipped(origin, "longer than a row", detail))
            longest = max(longest, len(document.ids))
        else:
            if name not in writers:
                writers[name] = _DatasetWriter(partial / name, seq_len, directions, rng, window)
            writers[name].add(document)
    if not writers:
        shutil.rmtree(partial)
        reasons = manifest.describe_skipped(skipped) or "  there are no documents"
        if longest:
            reasons += f"\nThe longest has {longest} tokens and a row {seq_len}: raise config.pack.seq_len."
        raise UserError(f"Nothing could be packed:\n{reasons}")
    meta = {
        "version": FORMAT_VERSION,
        "seq_len": seq_len,
        "vocabulary": vocabulary.hash,
        "directions": list(directions),
        "datasets": {name: writer.finish() for name, writer in writers.items()},
        "skipped": [
            {"reason": reason, "count": count} for reason, count in manifest.count_reasons(skipped).items()
        ],
    }
    vocabulary.save(partial / VOCABULARY)
    text_tokenizer.save(partial / TEXT_MODEL)
    manifest.write_skipped(skipped, partial / SKIPPED)
    (partial / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    return meta


class _DatasetWriter:
    """Collects the documents of one data set and writes a file of rows per window."""

    def __init__(
        self, directory: Path, seq_len: int, directions: dict[str, int], rng: np.random.Generator, window: int
    ):
        directory.mkdir()
        self._directory, self._seq_len, self._directions = directory, seq_len, directions
        self._rng, self._window = rng, window
        self._documents: list[Document] = []
        self._counts: Counter[str] = Counter()
        self._by_direction: Counter[str] = Counter()
        self._files = 0

    def add(self, document: Document) -> None:
        self._documents.append(document)
        self._counts["documents"] += 1
        self._counts["tokens"] += len(document.ids)
        self._counts["answer_tokens"] += int((document.roles == ANSWER).sum())
        self._by_direction[document.direction] += 1
        if len(self._documents) == self._window:
            self._write()

    def finish(self) -> dict[str, Any]:
        """Writes the rest; returns the data set's entry of meta.json."""
        self._write()
        fill = self._counts["tokens"] / (self._counts["records"] * self._seq_len)
        return {**self._counts, "fill": round(fill, 4), "directions": dict(self._by_direction)}

    def _write(self) -> None:
        if not self._documents:
            return
        documents = [self._documents[i] for i in self._rng.permutation(len(self._documents))]
        rows = best_fit([len(document.ids) for document in documents], self._seq_len)
        encoded = [
            records.encode_row([documents[i] for i in self._rng.permutation(row)], self._directions)
            for row in (rows[i] for i in self._rng.permutation(len(rows)))
        ]
        records.write_records(self._directory / f"data-{self._files:05d}{records.SUFFIX}", encoded)
        self._counts["records"] += len(rows)
        self._files += 1
        self._documents = []


def unpack(row: dict[str, np.ndarray], directions: Sequence[str]) -> Iterator[tuple[np.ndarray, str]]:
    """The (ids, direction) of each document of a decoded row, or of one row of a batch."""
    for segment in range(1, int(row["segment_ids"].max()) + 1):
        inside = row["segment_ids"] == segment
        yield row["tokens"][inside], directions[int(row["directions"][inside][0])]
