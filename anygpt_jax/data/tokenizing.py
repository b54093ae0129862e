"""Media files to codes, once: a manifest becomes a directory of token items.

    tokens-00000.arrayrecord …   token items (see records.py), one file per `shard_size` lines of the manifest
    skipped.jsonl                what was left out, where and why
    source.json                  what the tokens are made of: manifest and codecs
    meta.json                    the same with counts; its presence says that the directory is complete

An interrupted run is continued by the same call: finished shards are kept.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, MediaError
from tqdm import tqdm

from anygpt_jax.data import manifest as manifests
from anygpt_jax.data import records
from anygpt_jax.data.manifest import Item, Skipped
from anygpt_jax.data.records import TokenItem
from anygpt_jax.vocabulary import Vocabulary

META, SKIPPED, SOURCE = "meta.json", "skipped.jsonl", "source.json"
READ_AHEAD_BYTES = 64 << 20  # samples kept in memory before they are encoded
READERS = 4  # threads that read files


def tokenize_manifest(
    manifest: str | os.PathLike,
    out: str | os.PathLike,
    vocabulary: Vocabulary,
    codecs: Mapping[str, Codec],
    crop: Collection[str] = (),
    shard_size: int = 1024,
) -> dict[str, Any]:
    """Encodes every file of a manifest; returns the content of meta.json.

    Args:
      manifest: JSON lines, see manifest.py.
      out: a new directory, or one that the same call has begun or finished.
      vocabulary: says how long an item may be.
      codecs: by modality; lines may hold these media.
      crop: media whose overlong items are cut to their beginning; overlong items of other media are skipped.

    Raises:
      UserError: no such manifest, no usable line in it, or `out` holds something else.
    """
    out = Path(out)
    source = _describe_source(manifest, vocabulary, codecs, crop, shard_size)
    if _begin(out, source):
        return read_meta(out)
    items, skipped = manifests.read_manifest(manifest, list(codecs))
    encoder = _Encoder(vocabulary, codecs, crop, Path(manifest).name)
    counts: Counter[str] = Counter()
    with tqdm(total=len(items), desc="tokenize", unit="item") as progress:
        for start in range(0, len(items), shard_size):
            name = f"tokens-{start // shard_size:05d}"
            state = _tokenize_shard(out / name, items[start : start + shard_size], encoder, progress)
            counts.update(state["items"])
            skipped += [Skipped(**entry) for entry in state["skipped"]]
    manifests.write_skipped(skipped, out / SKIPPED)
    if not counts:
        reasons = manifests.describe_skipped(skipped) or "  it has no lines"
        raise UserError(f"Nothing in {os.fspath(manifest)!r} could be tokenised:\n{reasons}")
    _write_json(out / META, {**source, "items": dict(counts), "skipped": manifests.count_reasons(skipped)})
    for shard_state in out.glob("tokens-*.json"):
        shard_state.unlink()
    return read_meta(out)


def read_meta(directory: str | os.PathLike) -> dict[str, Any]:
    """meta.json of a complete token directory; UserError for anything else."""
    path = Path(directory) / META
    if not path.is_file():
        begun = (Path(directory) / SOURCE).is_file()
        what = "is not finished; run anygpt_jax.tokenize again" if begun else "holds no tokens"
        raise UserError(f"{os.fspath(directory)!r} {what}.")
    return json.loads(path.read_text(encoding="utf-8"))


class _Encoder:
    """Reads and encodes items of all media; what cannot be used becomes a Skipped."""

    def __init__(
        self, vocabulary: Vocabulary, codecs: Mapping[str, Codec], crop: Collection[str], manifest_name: str
    ):
        self._vocabulary, self._codecs, self._crop, self._manifest = vocabulary, codecs, crop, manifest_name

    def read(self, item: Item) -> np.ndarray | Skipped:
        """The samples of an item's file."""
        try:
            samples = self._codecs[item.modality].read_file(item.path)
        except MediaError as error:
            return self._skip(item, error.reason, str(error))
        except Exception as error:  # a foreign file may break any reader; it must not end the run
            return self._skip(item, "unreadable", f"{type(error).__name__}: {error}")
        return self._limit(item, samples)

    def encode(
        self, modality: str, items: Sequence[Item], samples: list[np.ndarray]
    ) -> list[TokenItem | Skipped]:
        """Codes of items of one medium."""
        codes = self._codecs[modality].encode_many(samples)
        return [
            TokenItem(item.id, item.text, modality, np.asarray(one, np.int32))
            if len(one)
            else self._skip(item, "too short", "not one frame")
            for item, one in zip(items, codes, strict=True)
        ]

    def _limit(self, item: Item, samples: np.ndarray) -> np.ndarray | Skipped:
        codec, entry = self._codecs[item.modality], self._vocabulary.modality(item.modality)
        if not codec.hop_length or not entry.max_frames:
            return samples
        longest = entry.max_frames * codec.hop_length
        if len(samples) <= longest:
            return samples
        if item.modality in self._crop:
            return samples[:longest]
        seconds = f"{len(samples) / codec.sample_rate:.1f} s, at most {longest / codec.sample_rate:.1f} s"
        return self._skip(item, "too long", seconds)

    def _skip(self, item: Item, reason: str, detail: str) -> Skipped:
        return Skipped(f"{self._manifest}:{item.line} {item.path}", reason, detail)


def _tokenize_shard(stem: Path, items: Sequence[Item], encoder: _Encoder, progress: tqdm) -> dict[str, Any]:
    """Writes one shard unless it is there; returns {"items": {modality: n}, "skipped": […]}."""
    state_path = stem.with_suffix(".json")
    if state_path.is_file():
        progress.update(len(items))
        return json.loads(state_path.read_text(encoding="utf-8"))
    results: dict[int, TokenItem | Skipped] = {}
    waiting: dict[str, list[tuple[Item, np.ndarray]]] = {}
    waiting_bytes: Counter[str] = Counter()

    def flush(modality: str) -> None:
        batch = waiting.pop(modality)
        waiting_bytes[modality] = 0
        encoded = encoder.encode(modality, [item for item, _ in batch], [samples for _, samples in batch])
        results.update({item.line: result for (item, _), result in zip(batch, encoded, strict=True)})
        progress.update(len(batch))

    with ThreadPoolExecutor(READERS) as pool:
        for item, samples in zip(items, _read_ahead(pool, encoder.read, items), strict=True):
            if isinstance(samples, Skipped):
                results[item.line] = samples
                progress.update(1)
                continue
            waiting.setdefault(item.modality, []).append((item, samples))
            waiting_bytes[item.modality] += samples.nbytes
            if waiting_bytes[item.modality] > READ_AHEAD_BYTES:
                flush(item.modality)
    for modality in list(waiting):
        flush(modality)

    tokens = [results[item.line] for item in items if isinstance(results[item.line], TokenItem)]
    skipped = [results[item.line].to_json() for item in items if isinstance(results[item.line], Skipped)]
    if tokens:
        records.write_records(stem.with_suffix(records.SUFFIX), [item.to_bytes() for item in tokens])
    state = {"items": dict(Counter(item.modality for item in tokens)), "skipped": skipped}
    _write_json(state_path, state)
    return state


def _read_ahead(pool: ThreadPoolExecutor, read: Callable[[Item], Any], items: Sequence[Item]):
    """read(item) for each item in order, by the pool's threads, a few items ahead of the caller."""
    ahead = 4 * READERS
    futures = [pool.submit(read, item) for item in items[:ahead]]
    for index in range(len(items)):
        result = futures[index].result()
        futures[index] = None  # the samples must not outlive their use
        if index + ahead < len(items):
            futures.append(pool.submit(read, items[index + ahead]))
        yield result


def _describe_source(
    manifest: str | os.PathLike,
    vocabulary: Vocabulary,
    codecs: Mapping[str, Codec],
    crop: Collection[str],
    shard_size: int,
) -> dict[str, Any]:
    try:
        digest = hashlib.sha256(Path(manifest).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"The manifest {os.fspath(manifest)!r} cannot be read: {error.strerror}.") from error
    media = {
        name: {
            "codec_hash": codec.hash,
            "num_codebooks": codec.num_codebooks,
            "codebook_size": codec.codebook_size,
            "max_frames": vocabulary.modality(name).max_frames,
            "crop": name in crop,
        }
        for name, codec in codecs.items()
    }
    folder = str(Path(manifest).absolute().parent)
    return {"manifest": digest, "folder": folder, "modalities": media, "shard_size": shard_size}


def _begin(out: Path, source: dict[str, Any]) -> bool:
    """Makes or re-enters the directory; True if it is complete already."""
    if (out / SOURCE).is_file():
        if json.loads((out / SOURCE).read_text(encoding="utf-8")) != source:
            raise UserError(
                f"{str(out)!r} holds tokens of another manifest or codec; give another --out or delete it."
            )
        return (out / META).is_file()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} exists and holds no tokens; give the name of a new directory.")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / SOURCE, source)
    return False


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
