"""Checksums of finished checkpoints, so that a damaged one is noticed before it is trusted.

workdir/checksums/<step>.json   {file under checkpoints/<step>: [bytes, checksum]}, written after the save
workdir/damaged/<step>          a damaged checkpoint that training has set aside

On a disk the checksum is the file's CRC-32, and all bytes are read to compare it. In a bucket it is the
CRC-32C that the service keeps with each object: no byte is downloaded to write or to compare it, so an object
that is missing, cut or overwritten is noticed, while the bytes of one that nobody has touched are in the
service's care. Of a checkpoint that was copied from a disk to a bucket or back only the sizes are compared. A
checkpoint without checksums (the process was killed before they were written) counts as whole.
"""

import json
import os
from collections.abc import Sequence

from etils import epath

from anygpt_jax import storage

CHECKPOINTS, CHECKSUMS, DAMAGED = "checkpoints", "checksums", "damaged"
_COMMITTED = "commit_success.txt"  # Orbax's last file; in a bucket only this tells a finished checkpoint


def record(workdir: str | os.PathLike, step: int) -> None:
    """Writes the checksums of a finished checkpoint, and removes those of checkpoints that are gone."""
    workdir = storage.locate(workdir)
    folder = workdir / CHECKSUMS
    folder.mkdir(exist_ok=True)
    found = storage.files(workdir / CHECKPOINTS / str(step))
    sums = {name: [file.size, file.checksum()] for name, file in found.items()}
    storage.write_text(folder / f"{step}.json", json.dumps(sums))
    for name in storage.names(folder):
        if name.endswith(".json") and not (workdir / CHECKPOINTS / name.removesuffix(".json")).is_dir():
            (folder / name).unlink()


def fault(workdir: str | os.PathLike, step: int) -> str | None:
    """What is wrong with a checkpoint, in a few words with the file's name; None if it is whole."""
    workdir = storage.locate(workdir)
    sums = workdir / CHECKSUMS / f"{step}.json"
    if not sums.exists():
        return None
    found = storage.files(workdir / CHECKPOINTS / str(step))
    for name, (size, checksum) in json.loads(storage.read_text(sums)).items():
        if name not in found:
            return f"{name} is missing"
        if found[name].size != size:
            return f"{name} has {found[name].size} bytes instead of {size}"
        comparable = isinstance(checksum, str) == storage.in_bucket(workdir)
        if comparable and found[name].checksum() != checksum:
            return f"{name} has other bytes than were written"
    return None


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
    good, faults = newest_whole(workdir, _finished(workdir))
    sentences = []
    for step, wrong in faults.items():
        aside = workdir / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        aside.rmtree(missing_ok=True)
        storage.move(workdir / CHECKPOINTS / str(step), aside)
        (workdir / CHECKSUMS / f"{step}.json").unlink()
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
