"""The report: the exact shape of report.json, and a page that needs no other file."""

import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax import report
from anygpt_jax.reporting.charts import line_chart

DIRECTIONS = list(report.TARGETS)
WORDS = ("a small red circle", "a large <b>blue</b> square", "a handwritten seven")


def fake_evaluation(folder, generator):
    """A result of `evaluation.evaluate` with its example files."""
    folder.mkdir(parents=True)
    directions, examples = {}, {}
    for direction in DIRECTIONS:
        to_text = direction.endswith("->text")
        medium = direction.replace("->text", "").replace("text->", "")
        metric = {"image": "attributes all right", "speech": "WER", "music": "attributes right, mean"}[medium]
        entry = {
            "score": generator.random(),
            "ceiling_real": 0.99,
            "ceiling_codec": 0.97,
            "metric": metric,
            "n": 100,
        }
        directions[direction] = entry
        examples[direction] = []
        for index in range(24 if direction == "text->image" else 4):
            name = f"{direction.replace('->', '_to_')}-{index}.{'png' if medium == 'image' else 'wav'}"
            if medium == "image":
                picture = np.full((64, 64, 3), 255, np.uint8)
                picture[20:44, 12 + index : 36 + index] = generator.integers(0, 255, 3)
                Image.fromarray(picture).save(folder / name)
            else:
                tone = 0.3 * np.sin(np.arange(8000) * (0.1 + 0.02 * index))
                soundfile.write(folder / name, tone, 16000)
            text = WORDS[index % 3]
            score = (index % 2, 4) if metric == "WER" else [1.0, 0.0, 0.75][index % 3]
            prompt, output = (name, text) if to_text else (text, name)
            example = {"prompt": prompt, "output": output, "reference": text, "score": score}
            examples[direction].append(example)
    model = {"step": 1000, "parameters": 3_200_000}
    return {"directions": directions, "examples": examples, "ceilings": {}, "seconds": {}, "model": model}


def fake_run(folder, with_shipped=True):
    generator = np.random.default_rng(0)
    metrics = []
    for step in range(20, 1001, 20):
        row = {"step": step, "loss": 1.0, "speed/tokens_per_s": 9000.0 + step, "speed/mfu": 0.4}
        for index, name in enumerate(("text", "image", "speech", "music")):
            row[f"loss/{name}"] = (5 + index) * np.exp(-step / (150 + 100 * index)) + 0.1 + 0.1 * index
        for index, name in enumerate(DIRECTIONS):
            row[f"accuracy/{name}"] = 1 - np.exp(-step / (100 + 80 * index))
        metrics.append(row)
    datasets = {
        name: {"documents": 8000, "tokens": 700_000, "records": 1400} for name in ("image", "speech", "music")
    }
    return report.Run(
        own=fake_evaluation(folder / "own", generator),
        shipped=fake_evaluation(folder / "shipped", generator) if with_shipped else None,
        folder=folder,
        metrics=metrics,
        seconds={"world": 30.0, "tokenize": 40.0, "pack": 5.0, "train": 700.0, "evaluate": 80.0},
        data=datasets,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(fake_run(folder / "evaluation"), folder)
    return folder


def test_report_json_has_the_agreed_shape(written):
    content = json.loads((written / "report.json").read_text())
    assert set(content) == {"directions", "shipped", "seconds", "train"}
    for table in (content["directions"], content["shipped"]["directions"]):
        assert set(table) == set(DIRECTIONS)
        for entry in table.values():
            assert set(entry) == {"score", "ceiling_real", "ceiling_codec", "metric", "n"}
    assert set(content["train"]) == {"tokens_per_s", "final_loss"}
    assert set(content["train"]["final_loss"]) >= {"text", "image", "speech", "music"}
    assert content["train"]["tokens_per_s"] == pytest.approx(9510)
    assert content["seconds"]["train"] == 700 and content["seconds"]["total"] == 855


def test_the_page_is_one_file_with_every_medium_inside(written):
    page = (written / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    assert "<script" not in page
    assert page.count("data:image/png") == 2 * 24 + 4
    assert page.count("<audio") == 2 * (4 + 4) + 4 + 4
    assert page.count("<svg") == 2
    assert "&lt;b&gt;blue&lt;/b&gt;" in page and "<b>blue</b>" not in page


def test_the_page_says_which_targets_are_met(written):
    page = (written / "report.html").read_text()
    content = json.loads((written / "report.json").read_text())
    met = 0
    for column, table in enumerate((content["directions"], content["shipped"]["directions"])):
        for direction, entry in table.items():
            target = report.TARGETS[direction][column]
            met += entry["score"] <= target if entry["metric"] == "WER" else entry["score"] >= target
    assert page.count('class="score good"') == met
    assert page.count('class="score bad"') == 12 - met


def test_a_run_without_a_shipped_model_has_one_column(tmp_path):
    content = report.write(fake_run(tmp_path / "evaluation", with_shipped=False), tmp_path)
    assert content["shipped"] is None
    assert "Shipped model" not in (tmp_path / "report.html").read_text()


def test_the_terminal_table_has_a_line_per_direction(written):
    content = json.loads((written / "report.json").read_text())
    lines = report.text_table(
        {"this run": content["directions"], "shipped": content["shipped"]["directions"]}
    )
    assert [line.split()[0] for line in lines.splitlines()[2:]] == DIRECTIONS


def test_charts_stand_any_numbers():
    assert line_chart({}, {}, "loss") == ""
    assert "<polyline" in line_chart({"a": [(1, 0.5)]}, {}, "loss", log=True)
    assert "<polyline" in line_chart({"a": [(1, 0.0), (2, 0.0)]}, {}, "accuracy")
    assert "nan" not in line_chart({"a": [(1, 3.0), (2, 3.0)], "b": [(1, 3.0)]}, {}, "loss", log=True)
