"""The judges of the six directions, none of which is a model of ours, and how their verdicts become scores.

    metric, score = JUDGES["text->image"]
    total = mean_score("text->image", [score(row, output) for row, output in zip(rows, outputs)])

`row` is a row of the small world's manifest. `output` is what the model made of it: a text, or for pictures
uint8 [64, 64, 3], or for sound float [samples] at 16 kHz.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from anygpt_jax.smallworld.captions import Attributes, canonical, parse_caption
from anygpt_jax.smallworld.image_judge import judge_image
from anygpt_jax.smallworld.music_judge import judge_music
from anygpt_jax.smallworld.speech_judge import judge_speech

SAMPLE_RATE = 16_000
ALL_RIGHT, WER, MEAN_RIGHT = "attributes all right", "WER", "attributes right, mean"
MUSIC_ATTRIBUTES = ("tempo", "contour", "instrument", "mode")

Score = float | tuple[int, int]


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substituted, missing and added words (Levenshtein), and the number of words of the reference."""
    truth, heard = reference.lower().split(), hypothesis.lower().split()
    costs = np.arange(len(heard) + 1)
    for row, word in enumerate(truth, start=1):
        previous, costs = costs, np.full(len(heard) + 1, row)
        for column, other in enumerate(heard, start=1):
            costs[column] = min(
                previous[column] + 1, costs[column - 1] + 1, previous[column - 1] + (word != other)
            )
    return int(costs[-1]), len(truth)


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Word errors per word of one reference; of many use `mean_score`, which weighs by length."""
    errors, words = word_errors(reference, hypothesis)
    return errors / max(words, 1)


def all_right(truth: Attributes, judged: Attributes | None) -> float:
    """1.0 if every attribute is right ("A above B" and "B below A" are the same), otherwise 0.0."""
    return float(judged is not None and canonical(judged) == canonical(truth))


def mean_right(truth: Attributes, judged: Attributes | None) -> float:
    """The fraction of the four attributes of music that are right."""
    judged = judged or {}
    return float(np.mean([judged.get(name) == truth[name] for name in MUSIC_ATTRIBUTES]))


JUDGES: dict[str, tuple[str, Callable[[dict, object], Score]]] = {
    "image->text": (ALL_RIGHT, lambda row, text: all_right(row["attributes"], parse_caption(text))),
    "text->image": (ALL_RIGHT, lambda row, rgb: all_right(row["attributes"], judge_image(rgb))),
    "speech->text": (WER, lambda row, text: word_errors(row["text"], text)),
    "text->speech": (WER, lambda row, wave: word_errors(row["text"], judge_speech(wave, SAMPLE_RATE))),
    "music->text": (MEAN_RIGHT, lambda row, text: mean_right(row["attributes"], parse_caption(text))),
    "text->music": (
        MEAN_RIGHT,
        lambda row, wave: mean_right(row["attributes"], judge_music(wave, SAMPLE_RATE)),
    ),
}


def score(direction: str, row: dict, output: str | np.ndarray) -> Score:
    """The score of one output: 1.0 or 0.0, for music a fraction, for words (errors, words)."""
    return JUDGES[direction][1](row, output)


def mean_score(direction: str, scores: Iterable[Score]) -> float:
    """One figure of many scores: their mean, or for words all errors over all words."""
    scores = list(scores)
    if JUDGES[direction][0] == WER:
        errors, words = np.sum(scores, axis=0)
        return float(errors / words)
    return float(np.mean(scores))


def modality_of(direction: str) -> str:
    """The medium of a direction that is not text."""
    return next(name for name in direction.split("->") if name != "text")


def load_rows(folder: str | os.PathLike, modality: str, limit: int | None = None) -> list[dict]:
    """The first `limit` rows of the small world's manifest in `folder` that have the modality."""
    lines = (Path(folder) / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if modality in row][:limit]


def load_media(folder: str | os.PathLike, row: dict, modality: str) -> np.ndarray:
    """The row's real picture, uint8 [64, 64, 3], or sound, float32 [samples]."""
    path = Path(folder) / row[modality]
    if modality == "image":
        return np.asarray(Image.open(path).convert("RGB"))
    return soundfile.read(path, dtype="float32")[0]


def ceilings(
    folder: str | os.PathLike,
    limit: int | None = None,
    reconstruct: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> dict[str, dict]:
    """The judges' scores on real data, which no model is expected to pass.

    Args:
      folder: a small world, held out.
      limit: at most that many rows per medium.
      reconstruct: (modality, media) -> media, such as a codec there and back; by default nothing is changed.

    Returns:
      direction -> {"metric", "score", "n"} for text->image, text->speech and text->music.
    """
    result = {}
    for direction in ("text->image", "text->speech", "text->music"):
        modality = modality_of(direction)
        rows = load_rows(folder, modality, limit)
        scores = []
        for row in rows:
            media = load_media(folder, row, modality)
            scores.append(score(direction, row, reconstruct(modality, media) if reconstruct else media))
        if scores:
            metric = JUDGES[direction][0]
            result[direction] = {"metric": metric, "score": mean_score(direction, scores), "n": len(scores)}
    return result
