"""Scores a model on held-out small-world data: six directions, each beside the ceilings that bound it.

The judges (smallworld/judges.py) are programs that are not ours. The two ceilings of a direction are its
medium's judge on the real data and on codec reconstructions of it: what a perfect listener or viewer would
score, and what is left of that once the codec has been through.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.media_image import image_from_array, prepare_image
from anygpt_tokenizers.resampling import Resampler
from tqdm import tqdm

from anygpt_jax import storage
from anygpt_jax.checkpoint import LoadedModel
from anygpt_jax.sampling.generator import EXTENSIONS, Generator, decode_many
from anygpt_jax.smallworld import images, judges

RESULT_FILE = "evaluation.json"
# Held-out examples kept for the report, from the first rows on: never the best ones.
IMAGE_EXAMPLES, OTHER_EXAMPLES = 24, 6


def evaluate(
    model: LoadedModel,
    heldout: str | os.PathLike,
    n: int,
    out: str | os.PathLike,
    seed: int = 0,
    ceilings: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Scores every direction that has a judge, and writes `out`/evaluation.json and example files.

    Args:
      model: from `load_model` or `load_shipped`.
      heldout: a small world, split "heldout", with at least n items of each medium.
      n: items per direction.
      seed: of the instructions and the sampling.
      ceilings: "ceilings" of another result on the same data with the same codecs, to save their time.

    Returns:
      {"directions": {"image->text": {"score", "ceiling_real", "ceiling_codec", "metric", "n"}, …},
      "ceilings": {modality: {"real", "codec", "codec_hash"}}, "examples": {direction: [{"prompt", "output",
      "reference", "score"}]}, "seconds": {…}, "model": {"step", "parameters"}}. Paths are relative to `out`.

    Raises:
      UserError: no such data, or too little of it.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    generator = Generator(model)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    result: dict[str, Any] = {"directions": {}, "ceilings": {}, "examples": {}, "seconds": {}}
    result["model"] = {"step": model.step, "parameters": int(parameters)}
    for modality in model.vocabulary.modalities:
        if f"text->{modality}" in judges.JUDGES:
            medium = _Medium(generator, heldout, modality, n, out, result["seconds"])
            result["ceilings"][modality] = medium.ceilings((ceilings or {}).get(modality))
            for direction in (f"{modality}->text", f"text->{modality}"):
                score, examples = medium.score(direction, seed)
                real, codec = (result["ceilings"][modality][key] for key in ("real", "codec"))
                result["directions"][direction] = {
                    "score": score,
                    "ceiling_real": real,
                    "ceiling_codec": codec,
                    "metric": judges.JUDGES[direction][0],
                    "n": n,
                }
                result["examples"][direction] = examples
    write_json(out / RESULT_FILE, result)
    return result


class _Medium:
    """The held-out items of one medium, real and as codes, and everything measured on them."""

    def __init__(self, generator: Generator, heldout, modality: str, n: int, out: Path, seconds):
        self._generator, self._modality, self._out, self._seconds = generator, modality, out, seconds
        self._rows = _load_rows(heldout, modality, n)
        self._real = [judges.load_media(heldout, row, modality) for row in self._rows]
        self._codec = generator.model.codecs[modality]
        with self._timed("encode"):
            self._media = [self._codec.read_file(Path(heldout) / row[modality]) for row in self._rows]
            self._codes = self._codec.encode_many(self._media)

    def ceilings(self, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """The judge on the real media and on reconstructions; `known` is used if it is of this codec."""
        if known and known["codec_hash"] == self._codec.hash:
            return dict(known)
        with self._timed("decode"):
            rebuilt = decode_many(self._codec, self._codes)
        direction = f"text->{self._modality}"
        real = judges.mean_score(direction, self._judge(direction, self._real, "real"))
        codec = judges.mean_score(direction, self._judge(direction, self._for_judge(rebuilt), "codec"))
        return {"real": real, "codec": codec, "codec_hash": self._codec.hash}

    def score(self, direction: str, seed: int) -> tuple[float, list[dict[str, Any]]]:
        """The score of a direction, and examples whose files lie in `out`."""
        to_text = direction.endswith("->text")
        contents = self._codes if to_text else [row["text"] for row in self._rows]
        with self._timed(f"generate {direction}"):
            outputs = self._generator.generate(direction, contents, seed, show_progress=True)
        if not to_text:
            with self._timed("decode"):
                outputs = decode_many(self._codec, outputs)
        judged = outputs if to_text else self._for_judge(outputs)
        scores = self._judge(direction, judged, "model")
        return judges.mean_score(direction, scores), self._examples(direction, outputs, scores)

    def _for_judge(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the codec decoded, in the size or at the rate of the small world, which the judges know."""
        if self._codec.kind == "image":
            return [prepare_image(image_from_array(rgb), images.SIZE) for rgb in outputs]
        return [_mono(wave, self._codec.sample_rate) for wave in outputs]

    def _judge(self, direction: str, outputs: Sequence[Any], what: str) -> list[judges.Score]:
        with self._timed(f"judge {self._modality}"):
            pairs = list(zip(self._rows, outputs, strict=True))
            bar = tqdm(pairs, desc=f"judge {direction}, {what}", unit="item", leave=False, disable=None)
            return [judges.score(direction, row, output) for row, output in bar]

    def _examples(self, direction, outputs, scores) -> list[dict[str, Any]]:
        """The first rows: what went in, what came out, what was true."""
        to_text = direction.endswith("->text")
        kind = self._codec.kind
        count = IMAGE_EXAMPLES if kind == "image" and not to_text else OTHER_EXAMPLES
        folder = self._out / direction.replace("->", "_to_")
        folder.mkdir(exist_ok=True)
        examples = []
        for index, row in enumerate(self._rows[:count]):
            path = folder / f"{index:02d}{EXTENSIONS[kind]}"
            self._codec.write(self._media[index] if to_text else outputs[index], path)
            file = str(path.relative_to(self._out))
            prompt, output = (file, outputs[index]) if to_text else (row["text"], file)
            example = {"prompt": prompt, "output": output, "reference": row["text"], "score": scores[index]}
            examples.append(example)
        return examples

    def _timed(self, name: str) -> "_Timer":
        return _Timer(self._seconds, name)


class _Timer:
    """Adds the seconds spent inside to an entry of a table."""

    def __init__(self, table: dict[str, float], name: str):
        self._table, self._name = table, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        elapsed = time.perf_counter() - self._start
        self._table[self._name] = round(self._table.get(self._name, 0.0) + elapsed, 2)


def _mono(wave: np.ndarray, rate: int) -> np.ndarray:
    """Sound float32 [T] or [T, channels] at `rate` -> float32 [T'] at the judges' rate."""
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    if rate == judges.SAMPLE_RATE:
        return wave
    resampler = Resampler(rate, judges.SAMPLE_RATE, 1)
    return np.concatenate([resampler.add(wave[:, None]), resampler.finish()])[:, 0]


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file that appears only when it is whole."""
    storage.write_text(path, json.dumps(content, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """NumPy's numbers as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _load_rows(heldout: str | os.PathLike, modality: str, n: int) -> list[dict[str, Any]]:
    if not (Path(heldout) / "manifest.jsonl").is_file():
        raise UserError(
            f"There is no held-out data at {os.fspath(heldout)!r}; make it with python -m "
            f"anygpt_jax.smallworld --split=heldout --out={os.fspath(heldout)} --images={n} --speech={n} "
            f"--music={n}."
        )
    rows = judges.load_rows(heldout, modality, n)
    if len(rows) < n:
        raise UserError(
            f"{os.fspath(heldout)!r} holds only {len(rows)} items of {modality}, not {n}; generate more."
        )
    return rows
