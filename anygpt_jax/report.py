"""The report of a run: report.html, one self-contained page, and report.json.

report.json: {"directions": {"image->text": {"score", "ceiling_real", "ceiling_codec", "metric", "n"}, …},
"shipped": {"directions": …} or null, "seconds": {stage: s}, "train": {"tokens_per_s", "final_loss": {…}}}.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anygpt_jax import storage
from anygpt_jax.evaluation import write_json
from anygpt_jax.reporting import page

HTML_FILE, JSON_FILE = "report.html", "report.json"

# What a run of the quickstart and the shipped model are meant to reach: (quickstart, shipped).
TARGETS = {
    "image->text": (0.80, 0.95),
    "text->image": (0.60, 0.85),
    "speech->text": (0.40, 0.08),
    "text->speech": (0.50, 0.20),
    "music->text": (0.70, 0.90),
    "text->music": (0.60, 0.80),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report is made of.

    Attributes:
      own, shipped: results of `evaluation.evaluate`; `shipped` is None where no model is shipped.
      folder: the evaluations' example files lie in folder/own and folder/shipped.
      metrics: rows of the training log, metrics.jsonl.
      seconds: per stage.
      data: "datasets" of the packed data's meta.json.
    """

    own: Mapping[str, Any]
    shipped: Mapping[str, Any] | None
    folder: Path
    metrics: Sequence[Mapping[str, float]]
    seconds: Mapping[str, float]
    data: Mapping[str, Any]


def write(run: Run, out: str | Path) -> dict[str, Any]:
    """Writes `out`/report.html and `out`/report.json, and returns the latter's content."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(run)
    storage.write_text(out / HTML_FILE, page.render(run, summary, TARGETS))
    write_json(out / JSON_FILE, summary)
    return summary


def summarise(run: Run) -> dict[str, Any]:
    """The content of report.json."""
    final = run.metrics[-1] if run.metrics else {}
    # The first rows include compilation and a cold cache.
    speeds = [row["speed/tokens_per_s"] for row in run.metrics if "speed/tokens_per_s" in row]
    return {
        "directions": run.own["directions"],
        "shipped": {"directions": run.shipped["directions"]} if run.shipped else None,
        "seconds": {**run.seconds, "total": round(sum(run.seconds.values()), 2)},
        "train": {
            "tokens_per_s": round(statistics.median(speeds), 1) if speeds else None,
            "final_loss": {
                name.removeprefix("loss/"): value for name, value in final.items() if name.startswith("loss/")
            },
        },
    }


def text_table(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The results of some models as lines for the terminal.

    Args:
      tables: name of the model → "directions" of its evaluation.
    """
    first = next(iter(tables.values()))
    head = ["direction", "metric", *tables, "real data", "codec", "n"]
    rows = [head]
    for direction, entry in first.items():
        scores = [f"{table[direction]['score']:.3f}" for table in tables.values()]
        ceilings = [f"{entry['ceiling_real']:.3f}", f"{entry['ceiling_codec']:.3f}"]
        rows.append([direction, entry["metric"], *scores, *ceilings, str(entry["n"])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
