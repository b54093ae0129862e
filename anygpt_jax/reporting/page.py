"""report.html: the sections of the page, from the results of a run."""

import base64
import html
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anygpt_jax.reporting.charts import line_chart
from anygpt_jax.reporting.style import CSS
from anygpt_jax.smallworld.judges import WER

COLORS = {"text": "#d9822b", "image": "#3b6fd4", "speech": "#2e9e6b", "music": "#9a53c4"}
_DIRECTION_COLORS = {
    "image->text": "#3b6fd4",
    "text->image": "#8fb0ee",
    "speech->text": "#2e9e6b",
    "text->speech": "#86cfae",
    "music->text": "#9a53c4",
    "text->music": "#cda4e4",
}
_STAGE_NAMES = {
    "world": "generate the world",
    "tokenize": "media to codes",
    "pack": "codes to rows",
    "train": "train",
    "evaluate": "evaluate",
    "evaluate_shipped": "evaluate the shipped model",
}


def render(run: Any, summary: Mapping[str, Any], targets: Mapping[str, tuple[float, float]]) -> str:
    """The whole page as HTML text; `run` is a report.Run and `summary` the content of report.json."""
    models = {"This run": ("own", run.own)}
    if run.shipped:
        models["Shipped model"] = ("shipped", run.shipped)
    sections = [
        _header(run, summary),
        _section("Scores", _scores_note(), _score_table(run, targets)),
        _section(
            "Learning", "Loss and accuracy are of answer tokens, before any weights.", _curves(run.metrics)
        ),
        _section("Text to image", "The first held-out captions, drawn once each.", _pictures(run, models)),
        _section("Text to speech", "What the recogniser heard counts.", _sounds(run, models, "text->speech")),
        _section("Text to music", "", _sounds(run, models, "text->music")),
        *(_section(title, "", _readings(run, models, direction)) for title, direction in _READINGS),
        _section("Time and data", "", _costs(run, summary)),
    ]
    title = "AnyGPT in JAX: the small world"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


_READINGS = (
    ("Image to text", "image->text"),
    ("Speech to text", "speech->text"),
    ("Music to text", "music->text"),
)


def _section(title: str, note: str, body: str) -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{note}{body}</section>" if body else ""


def _header(run: Any, summary: Mapping[str, Any]) -> str:
    model, train = run.own["model"], summary["train"]
    facts = {
        "parameters": f"{model['parameters'] / 1e6:.1f} M",
        "steps": f"{model['step']:,}",
        "tokens a second": f"{train['tokens_per_s']:,.0f}" if train["tokens_per_s"] else "–",
        "from nothing to here": _duration(summary["seconds"]["total"]),
    }
    cards = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in facts.items())
    return (
        "<header><h1>One model, four media</h1>"
        "<p>A decoder that reads and writes text, images, speech and music as tokens of one vocabulary, "
        "trained on a small made-up world and judged on what it has never seen.</p>"
        f'<div class="cards">{cards}</div></header>'
    )


def _scores_note() -> str:
    return (
        "Held-out data, judged by programs that are not ours. “Real data” and “codec” are ceilings: what the "
        "judge of the medium makes of the real thing, and of the codec’s reconstruction of it. "
        "For word error rate (WER), less is better."
    )


def _score_table(run: Any, targets: Mapping[str, tuple[float, float]]) -> str:
    columns = "<th>this run<th>target"
    if run.shipped:
        columns += "<th>shipped<th>target"
    rows = []
    for direction, entry in run.own["directions"].items():
        goals = targets.get(direction, (None, None))
        cells = _score_cells(entry, goals[0])
        if run.shipped:
            cells += _score_cells(run.shipped["directions"][direction], goals[1])
        ceilings = f"<td>{entry['ceiling_real']:.3f}<td>{entry['ceiling_codec']:.3f}<td>{entry['n']}"
        rows.append(f"<tr><th>{_arrow(direction)}<td class=metric>{entry['metric']}{cells}{ceilings}")
    return (
        '<div class="scroll"><table class="scores"><thead><tr><th>direction<th class=metric>metric'
        f"{columns}<th>real data<th>codec<th>n</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _score_cells(entry: Mapping[str, Any], target: float | None) -> str:
    lower_is_better = entry["metric"] == WER
    score = entry["score"]
    bar = f'<i class="bar" style="width:{100 * min(max(score, 0), 1):.0f}%"></i>'
    if target is None:
        return f'<td class="score">{score:.3f}{bar}<td class="target">–'
    good = score <= target if lower_is_better else score >= target
    sign = "≤" if lower_is_better else "≥"
    return (
        f'<td class="score {"good" if good else "bad"}">{score:.3f}{bar}'
        f'<td class="target">{sign} {target:.2f} {"✓" if good else "✗"}'
    )


def _curves(metrics: Sequence[Mapping[str, float]]) -> str:
    def series(prefix: str, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [(row["step"], row[f"{prefix}/{name}"]) for row in metrics if f"{prefix}/{name}" in row]
            for name in names
        }

    losses = line_chart(series("loss", list(COLORS)), COLORS, "loss per modality", log=True)
    accuracies = {
        _plain_arrow(name): points for name, points in series("accuracy", list(_DIRECTION_COLORS)).items()
    }
    colors = {_plain_arrow(name): color for name, color in _DIRECTION_COLORS.items()}
    chart = line_chart(accuracies, colors, "accuracy of the next token per direction")
    figures = [
        f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"
        for caption, svg in (
            ("Loss per modality, nats per token, by step", losses),
            ("Accuracy of the next token per direction, by step", chart),
        )
        if svg
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _pictures(run: Any, models: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    grids = []
    for name, (folder, result) in models.items():
        tiles = [
            f'<figure class="tile {_grade(example["score"])}">'
            f"{_media(run.folder / folder / example['output'])}"
            f"<figcaption>{html.escape(example['prompt'])}</figcaption></figure>"
            for example in result["examples"].get("text->image", [])
        ]
        if tiles:
            grids.append(f'<h3>{name}</h3><div class="tiles">{"".join(tiles)}</div>')
    return "".join(grids)


def _sounds(run: Any, models: Mapping[str, tuple[str, Mapping[str, Any]]], direction: str) -> str:
    examples = {name: result["examples"].get(direction, []) for name, (_, result) in models.items()}
    count = min(len(rows) for rows in examples.values())
    if not count:
        return ""
    head = "".join(f"<th>{name}" for name in models)
    rows = []
    for index in range(count):
        prompt = next(iter(examples.values()))[index]["prompt"]
        cells = "".join(
            f"<td>{_media(run.folder / folder / examples[name][index]['output'])}"
            f"{_verdict(examples[name][index]['score'])}"
            for name, (folder, _) in models.items()
        )
        rows.append(f"<tr><th>{html.escape(prompt)}{cells}")
    return _media_table(f"<th>asked for{head}", rows)


def _readings(run: Any, models: Mapping[str, tuple[str, Mapping[str, Any]]], direction: str) -> str:
    own = run.own["examples"].get(direction, [])
    if not own:
        return ""
    head = "".join(f"<th>{name}" for name in models)
    rows = []
    for index, example in enumerate(own):
        answers = "".join(
            f"<td>{html.escape(answer['output'])}{_verdict(answer['score'])}"
            for _, result in models.values()
            for answer in result["examples"][direction][index : index + 1]
        )
        medium = _media(run.folder / "own" / example["prompt"])
        rows.append(f"<tr><th>{medium}<td>{html.escape(example['reference'])}{answers}")
    return _media_table(f"<th>shown<th>true{head}", rows)


def _media_table(head: str, rows: Sequence[str]) -> str:
    table = f'<table class="media"><thead><tr>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _costs(run: Any, summary: Mapping[str, Any]) -> str:
    total = summary["seconds"]["total"] or 1.0
    times = "".join(
        f"<tr><th>{_STAGE_NAMES.get(stage, stage)}<td>{_duration(seconds)}"
        f'<td class="wide"><i class="bar" style="width:{100 * seconds / total:.1f}%"></i>'
        for stage, seconds in run.seconds.items()
    )
    data = "".join(
        f"<tr><th>{html.escape(name)}<td>{entry['documents']:,}<td>{entry['tokens']:,}<td>{entry['records']:,}"
        for name, entry in run.data.items()
    )
    heads = ("<th>stage<th>time<th>", "<th>data set<th>documents<th>tokens<th>rows")
    tables = "".join(
        f'<table class="plain"><thead><tr>{head}</thead><tbody>{body}</tbody></table>'
        for head, body in zip(heads, (times, data), strict=True)
    )
    return f'<div class="pair">{tables}</div>'


def _media(path: Path) -> str:
    """An <img> or <audio> with the file inside."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    uri = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if kind.startswith("image"):
        return f'<img src="{uri}" alt="">'
    return f'<audio controls preload="none" src="{uri}"></audio>'


def _grade(score: float | Sequence[int]) -> str:
    if isinstance(score, Sequence):
        return "good" if score[0] == 0 else "bad"
    return "good" if score == 1 else "bad"


def _verdict(score: float | Sequence[int]) -> str:
    """A small mark: all right, or how much is wrong."""
    if isinstance(score, Sequence):
        text = "✓" if score[0] == 0 else f"{score[0]} of {score[1]} words wrong"
    else:
        text = "✓" if score == 1 else "✗" if score == 0 else f"{100 * score:.0f} %"
    return f' <em class="{_grade(score)}">{text}</em>'


def _arrow(direction: str) -> str:
    return html.escape(_plain_arrow(direction))


def _plain_arrow(direction: str) -> str:
    return direction.replace("->", " → ")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
