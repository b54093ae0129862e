"""Packed rows to batches with Grain: shuffled, mixed, and a pure function of the step.

The state of the whole input pipeline is the step number: batch `step` is the same on any number of hosts and
after any interruption.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grain
import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax.data import packing, records
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]


class PackedData:
    """Batches of a packed directory (see packing.py).

    Within a data set every row comes exactly once per epoch, in an order that differs from epoch to epoch;
    data sets are mixed at fixed rates.

    Attributes: `seq_len`, `vocabulary`, `directions` (index = direction id), `text_tokenizer`,
    `contents`, per data set its numbers of rows, documents and tokens, and `records`, its rows alone.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        mixture: Mapping[str, float] | None = None,
        batch_size: int = 16,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Opens a packed directory.

        `mixture`: rate of each data set that is to be used, in any unit; None takes all, by their number of
        rows. `batch_size`: rows of all processes together; this process gets its contiguous part of each
        batch.
        """
        directory = Path(directory)
        meta = _read_meta(directory)
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"A batch of {batch_size} rows cannot be divided among {process_count} processes."
            )
        self.seq_len: int = meta["seq_len"]
        self.directions: list[str] = meta["directions"]
        self.vocabulary = Vocabulary.load(directory / packing.VOCABULARY)
        self.text_tokenizer = TextTokenizer(directory / packing.TEXT_MODEL)
        self.contents: dict[str, dict] = meta["datasets"]
        self.records = {name: entry["records"] for name, entry in self.contents.items()}
        rates = _rates(mixture, self.records, directory)
        rows = [self._open(directory / name, name, seed) for name in rates]
        self._rows = grain.MapDataset.mix(rows, list(rates.values()))
        self._batch_size, part = batch_size, batch_size // process_count
        self._local = range(process_index * part, (process_index + 1) * part)

    def batch(self, step: int) -> Batch:
        """Batch number `step`: int32 [B, seq_len] arrays, named and meant as in `records.decode_row`."""
        first = step * self._batch_size
        rows = [self._rows[first + index] for index in self._local]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def iterator(self, start_step: int = 0, prefetch: int = 4) -> Iterator[Batch]:
        """batch(start_step), batch(start_step + 1), … a thread works `prefetch` of them ahead."""
        batches = grain.MapDataset.source(_Steps(self))[start_step:]
        options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=max(prefetch, 1))
        return iter(batches.to_iter_dataset(options))

    def _open(self, directory: Path, name: str, seed: int) -> grain.MapDataset:
        source = records.open_records(directory)
        if len(source) != self.records[name]:
            raise UserError(
                f"{str(directory)!r} has {len(source)} records instead of {self.records[name]}; pack again."
            )
        # Each data set has its own order, which does not depend on what else is in the mixture.
        own_seed = zlib.crc32(f"{seed}/{name}".encode())
        dataset = grain.MapDataset.source(source).shuffle(seed=own_seed).repeat()
        return dataset.map(lambda record: records.decode_row(record, self.seq_len))


class _Steps:
    """All batches as a random-access source for Grain."""

    def __init__(self, data: PackedData):
        self._data = data

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> Batch:
        return self._data.batch(step)


def _read_meta(directory: Path) -> dict:
    path = directory / packing.META
    if not path.is_file():
        raise UserError(
            f"{str(directory)!r} is not packed data: it has no {packing.META}; make it with anygpt_jax.pack."
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); copy it or pack again.") from error
    if not isinstance(meta, dict) or meta.get("version") != packing.FORMAT_VERSION or "datasets" not in meta:
        raise UserError(f"{str(directory)!r} was packed by another version of this program; pack again.")
    return meta


def _rates(
    mixture: Mapping[str, float] | None, sizes: Mapping[str, int], directory: Path
) -> dict[str, float]:
    if not mixture:
        return dict(sizes)
    unknown = [name for name, rate in mixture.items() if rate and name not in sizes]
    if unknown:
        raise UserError(
            f"The mixture names the data set {unknown[0]!r}; {str(directory)!r} has {', '.join(sizes)} "
            f"(--config.data.mixture.{unknown[0]}=0 trains without it)."
        )
    rates = {name: float(rate) for name, rate in mixture.items() if rate}
    if not rates or min(rates.values()) < 0:
        raise UserError("A mixture needs at least one positive rate and no negative one.")
    return rates
