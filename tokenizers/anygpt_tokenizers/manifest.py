"""The manifest of a directory of training examples: one JSON object a line."""

import json
from pathlib import Path

from anygpt_tokenizers.cli import UserError


def rows_with(data_dir: str | Path, field: str) -> list[dict]:
    """The rows of DIR/manifest.jsonl that have `field`; UserError if there are none, or a line is no JSON."""
    manifest = Path(data_dir) / "manifest.jsonl"
    if not manifest.is_file():
        raise UserError(f"There is no {manifest}; --data must name a directory with a manifest.jsonl.")
    rows = []
    for number, line in enumerate(manifest.read_text().splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{manifest}, line {number} is no JSON: {error}.") from error
    rows = [row for row in rows if field in row]
    if not rows:
        raise UserError(f"{manifest} has no row with {field!r}.")
    return rows
