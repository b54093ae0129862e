"""Checksums of finished checkpoints, so that a damaged one is noticed before it is trusted.

workdir/checksums/<step>.json   {file under checkpoints/<step>: [bytes, checksum]}, written after the save
workdir/damaged/<step>          a damaged checkpoint that training has set aside

On a disk the checksum is the file's CRC-32, and all bytes are read to compare it. In a bucket it is the
CRC-32C that the service keeps with each object: no byte is downloaded to write or to compare it, so an object
that is missing, cut or overwritten is noticed, while the bytes of one that nobody has touched are in the
service's care. Of a checkpoint that was copied from a disk to a bucket or back only the sizes are compared.

A training's checkpoint without checksums (the process was killed before they were written) is read once, and
counts as whole if that succeeds. An imported one (convert) is there only with its checksums; one without, of
an older version, is not looked at.
"""

import itertools
import json
import os
from collections.abc import Sequence

import tensorstore as ts
from etils import epath

from anygpt_jax import storage

CHECKPOINTS, CHECKSUMS, DAMAGED = "checkpoints", "checksums", "damaged"
_ARRAYS = ("params", "opt_state")
_JSON_FILES = ("meta/metadata", "data/metadata", *(f"{name}/_METADATA" for name in _ARRAYS))
_COMMITTED = "commit_success.txt"  # Orbax's last file; in a bucket only this tells a finished checkpoint


def record(workdir: str | os.PathLike, step: int) -> None:
    """Writes the checksums of a finished checkpoint, and removes those of checkpoints that are gone."""
    workdir = storage.locate(workdir)
    folder = workdir / CHECKSUMS
    folder.mkdir(exist_ok=True)
    try:
        found = storage.files(workdir / CHECKPOINTS / str(step))
        sums = {name: [file.size, file.checksum()] for name, file in found.items()}
    except FileNotFoundError:
        sums = None  # a newer save is just removing this checkpoint
    if sums:
        storage.write_text(folder / f"{step}.json", json.dumps(sums))
    for name in storage.names(folder):
        if name.endswith(".json") and not (workdir / CHECKPOINTS / name.removesuffix(".json")).is_dir():
            (folder / name).unlink()


def fault(workdir: str | os.PathLike, step: int) -> str | None:
    """What is wrong with a checkpoint, in a few words with the file's name; None if it is whole."""
    workdir = storage.locate(workdir)
    path = workdir / CHECKSUMS / f"{step}.json"
    if not path.exists():
        return _unreadable(workdir / CHECKPOINTS / str(step))
    try:
        sums = json.loads(storage.read_text(path))
    except ValueError:
        return f"its checksums in {CHECKSUMS}/{path.name} cannot be read"
    found = storage.files(workdir / CHECKPOINTS / str(step))
    for name, (size, checksum) in sums.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].size != size:
            return f"{name} has {found[name].size} bytes instead of {size}"
        comparable = isinstance(checksum, str) == storage.in_bucket(workdir)
        if comparable and found[name].checksum() != checksum:
            return f"{name} has other bytes than were written"
    return None


def _unreadable(checkpoint: epath.Path) -> str | None:
    """What of a training's checkpoint that has no checksums cannot be read; None if all can."""
    if not (checkpoint / _ARRAYS[-1]).is_dir():
        return None
    name = ""
    try:
        about = (name for name in storage.files(checkpoint) if "/array_metadatas/" in name)
        for name in (*_JSON_FILES, *about):
            json.loads(storage.read_text(checkpoint / name))
        for name in _ARRAYS:
            _read_arrays(checkpoint / name)
    except (OSError, ValueError):
        return f"it has no checksums, and {name} cannot be read"
    return None


def _read_arrays(item: epath.Path) -> None:
    """Reads all arrays of an item, one chunk in memory at a time; ValueError where that is impossible."""
    base = {"driver": "ocdbt", "base": f"{'' if storage.in_bucket(item) else 'file://'}{item}/"}
    keys = [key.decode() for key in ts.KvStore.open(base).result().list().result()]
    names = {key.rpartition("/")[0]: key for key in keys if key.endswith(("/.zarray", "/zarr.json"))}
    if not names:
        raise ValueError("there are no arrays")
    for name, key in names.items():
        driver = "zarr" if key.endswith(".zarray") else "zarr3"
        kvstore = {**base, "path": f"{name}/"}
        array = ts.open({"driver": driver, "kvstore": kvstore}, open=True).result()
        chunk = array.chunk_layout.read_chunk.shape or ()  # of a scalar it is None
        starts = (range(0, size, step) for size, step in zip(array.shape, chunk, strict=True))
        for start in itertools.product(*starts):
            ends = (min(at + step, size) for at, step, size in zip(start, chunk, array.shape, strict=True))
            array[tuple(slice(at, end) for at, end in zip(start, ends, strict=True))].read().result()


def newest_whole(workdir: str | os.PathLike, steps: Sequence[int]) -> tuple[int | None, dict[int, str]]:
    """The newest of `steps` that is whole, and the faults of those after it."""
    faults: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        wrong = fault(workdir, step)
        if wrong is None:
            return step, faults
        faults[step] = wrong
    return None, faults


def set_aside_damaged(workdir: str | os.PathLike) -> list[str]:
    """Moves damaged checkpoints newer than the newest whole one out of the way; a sentence on each."""
    workdir = storage.locate(workdir)
    # Step 0 is an imported model's, which no training goes on from and none may take the place of.
    good, faults = newest_whole(workdir, [step for step in _finished(workdir) if step])
    sentences = []
    for step, wrong in faults.items():
        aside = workdir / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        aside.rmtree(missing_ok=True)
        storage.move(workdir / CHECKPOINTS / str(step), aside)
        (workdir / CHECKSUMS / f"{step}.json").unlink(missing_ok=True)
        instead = "training starts anew" if good is None else f"training goes on from step {good}"
        sentences.append(f"Checkpoint {step} is damaged ({wrong}); it was moved to {aside}, and {instead}.")
    return sentences


def _finished(workdir: epath.Path) -> list[int]:
    """The steps whose checkpoints were finished once."""
    folder = workdir / CHECKPOINTS
    steps = [int(name) for name in storage.names(folder) if name.isdigit()]
    if not storage.in_bucket(workdir):
        return steps  # an unfinished one has another name there
    return [
        step
        for step in steps
        if (folder / str(step) / _COMMITTED).exists() or (workdir / CHECKSUMS / f"{step}.json").exists()
    ]
