"""Manifests: JSON lines with a `text` and one medium's file, the form in which anyone brings their own data.

    {"text": "a cat on a sofa", "image": "photos/cat.jpg"}
    {"text": "good morning", "speech": "voices/0001.wav", "id": "0001"}

Paths are relative to the manifest's folder. Fields other than `text`, `id` and the media are ignored.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from anygpt_tokenizers.cli import UserError


@dataclasses.dataclass(frozen=True)
class Item:
    """A usable line: text and the path of one medium's file."""

    line: int
    id: str
    text: str
    modality: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something left out: where (file and line), a short reason to count under, and the particulars."""

    where: str
    reason: str
    detail: str = ""

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def read_manifest(path: str | os.PathLike, modalities: Collection[str]) -> tuple[list[Item], list[Skipped]]:
    """Reads a manifest; lines that cannot be used are returned with their reason, blank lines are ignored.

    `modalities`: the media that a line may hold. Raises UserError if there is no such file.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"The manifest {str(path)!r} cannot be read: {error.strerror}.") from error
    items, skipped = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse_row(line, modalities)
        if isinstance(row, dict):
            items.append(_item(number, row, modalities, path.parent))
        else:
            skipped.append(Skipped(f"{path.name}:{number}", *row))
    return items, skipped


def _parse_row(line: bytes, modalities: Collection[str]) -> dict[str, Any] | tuple[str, str]:
    """The row, or the reason and particulars why it cannot be used."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "line is not UTF-8", ""
    except (json.JSONDecodeError, RecursionError) as error:
        return "line is not JSON", str(error)
    if not isinstance(row, dict):
        return "line is not a JSON object", ""
    if not isinstance(row.get("text"), str) or not row["text"].strip():
        return "no text", "the field 'text' is missing, empty or not a string"
    present = [name for name in modalities if row.get(name) is not None]
    if len(present) != 1:
        reason = "more than one medium" if present else "no known medium"
        return reason, f"one of {', '.join(modalities)} must be there; this line has {', '.join(row)}"
    file = row[present[0]]
    if not isinstance(file, str) or not file or "\0" in file:
        return "no path", f"the field {present[0]!r} is not a file's path"
    return row


def _item(number: int, row: dict[str, Any], modalities: Collection[str], folder: Path) -> Item:
    modality = next(name for name in modalities if row.get(name) is not None)
    identity = str(row.get("id", row[modality]))
    return Item(number, identity, row["text"].strip(), modality, folder / row[modality])


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """How many things were left out for each reason, the most frequent first."""
    return dict(Counter(entry.reason for entry in skipped).most_common())


def write_skipped(skipped: Iterable[Skipped], path: str | os.PathLike) -> None:
    """Writes one JSON object per line."""
    with open(path, "w", encoding="utf-8") as file:
        for entry in skipped:
            file.write(json.dumps(entry.to_json(), ensure_ascii=False) + "\n")


def read_skipped(path: str | os.PathLike) -> list[Skipped]:
    """Inverse of `write_skipped`."""
    with open(path, encoding="utf-8") as file:
        return [Skipped(**json.loads(line)) for line in file]


def describe_skipped(skipped: list[Skipped], examples: int = 3) -> str:
    """A table for the terminal: each reason, its count, and a few places, each once."""
    lines = []
    for reason, count in count_reasons(skipped).items():
        places = list(dict.fromkeys(entry.where for entry in skipped if entry.reason == reason))
        more = ", …" if len(places) > examples else ""
        lines.append(f"  {count:6d}  {reason} ({', '.join(places[:examples])}{more})")
    return "\n".join(lines)
