"""Checksums of finished checkpoints, so that a damaged one is noticed before it is trusted.

workdir/checksums/<step>.json   {file under checkpoints/<step>: [bytes, CRC-32]}, written after the save
workdir/damaged/<step>          a damaged checkpoint that training has set aside

A checkpoint without checksums (the process was killed before they were written) counts as whole.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

CHECKPOINTS, CHECKSUMS, DAMAGED = "checkpoints", "checksums", "damaged"
_PIECE = 16 << 20  # bytes read at a time


def record(workdir: str | os.PathLike, step: int) -> None:
    """Writes the checksums of a finished checkpoint, and removes those of checkpoints that are gone."""
    workdir = Path(workdir)
    root, folder = workdir / CHECKPOINTS / str(step), workdir / CHECKSUMS
    folder.mkdir(exist_ok=True)
    sums = {str(path.relative_to(root)): [path.stat().st_size, _crc(path)] for path in _files(root)}
    temporary = folder / f"{step}.json.tmp"
    temporary.write_text(json.dumps(sums), encoding="utf-8")
    os.replace(temporary, folder / f"{step}.json")
    for path in folder.glob("*.json"):
        if not (workdir / CHECKPOINTS / path.stem).is_dir():
            path.unlink()


def fault(workdir: str | os.PathLike, step: int) -> str | None:
    """What is wrong with a checkpoint, in a few words with the file's name; None if it is whole."""
    root = Path(workdir, CHECKPOINTS, str(step))
    sums = Path(workdir, CHECKSUMS, f"{step}.json")
    if not sums.is_file():
        return None
    for name, (size, crc) in json.loads(sums.read_text(encoding="utf-8")).items():
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _crc(path) != crc:
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
    workdir = Path(workdir)
    steps = [int(path.name) for path in workdir.glob(f"{CHECKPOINTS}/*") if path.name.isdigit()]
    good, faults = newest_whole(workdir, steps)
    sentences = []
    for step, wrong in faults.items():
        aside = workdir / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(workdir / CHECKPOINTS / str(step), aside)
        (workdir / CHECKSUMS / f"{step}.json").unlink()
        instead = "training starts anew" if good is None else f"training goes on from step {good}"
        sentences.append(f"Checkpoint {step} is damaged ({wrong}); it was moved to {aside}, and {instead}.")
    return sentences


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc
