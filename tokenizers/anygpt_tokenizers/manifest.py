"""The manifest of a directory of training examples: one JSON object a line."""

import json
from collections.abc import Iterator
from pathlib import Path

from anygpt_tokenizers.cli import UserError

CAPTION = "text"  # the one field that is no file's name


def rows_with(data_dir: str | Path, *fields: str) -> list[dict]:
    """The rows of DIR/manifest.jsonl that have all of `fields`, each a text; null counts as not there.

    UserError: there is no such file or row; or, with its number, a line that is no object of JSON, or in
    which a field is something else than a text, or empty where it names a file.
    """
    manifest = Path(data_dir) / "manifest.jsonl"
    if not manifest.is_file():
        raise UserError(f"There is no {manifest}; --data must name a directory with a manifest.jsonl.")
    rows = []
    for place, row in _objects(manifest):
        if any(row.get(field) is None for field in fields):
            continue
        for field in fields:
            value = row[field]
            if not isinstance(value, str) or not (value or field == CAPTION):
                kind = "a text" if field == CAPTION else "the path of a file"
                raise UserError(f"{place}: {field!r} is {value!r}; it must be {kind}, or null.")
        rows.append(row)
    if not rows:
        raise UserError(f"{manifest} has no row with {' and '.join(map(repr, fields))}.")
    return rows


def _objects(manifest: Path) -> Iterator[tuple[str, dict]]:
    """(place to name, object) of every line that is not blank."""
    # Not by str.splitlines, for which a line also ends at characters that JSON allows in a text.
    for number, line in enumerate(manifest.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{manifest}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{place} is no object of JSON.")
        yield place, row
