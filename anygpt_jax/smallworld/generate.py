"""Writes the small world to disk: pictures, speech, music and the manifest that names them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from anygpt_tokenizers.cli import UserError
from PIL import Image
from tqdm import tqdm

from anygpt_jax.smallworld import captions, images, music, speech

# Raise it when the same request would give other files than before.
VERSION = 3
IMAGE_SHARES = {
    "train": {"shape": 0.4, "pair": 0.35, "digit": 0.25},
    "heldout": {"shape": 0.4, "pair": 0.4, "digit": 0.2},
}
# This part of training's captions of pairs name the upper or left shape first; the rest do as often as not.
# With both orders equally frequent a small model does not learn which colour belongs to which shape.
READING_ORDER = 0.6
SENTENCE_SHARES = {"scene": 0.25, "request": 0.25, "number": 0.1, "tune": 0.15, "digits": 0.25}
MODALITIES = ("image", "speech", "music")
FOLDERS = {"image": "images", "speech": "speech", "music": "music"}


def generate(
    out: str | os.PathLike,
    split: str = "train",
    images: int = 0,
    speech: int = 0,
    music: int = 0,
    seed: int = 0,
) -> Path:
    """Writes `out`/{images,speech,music}/… and `out`/manifest.jsonl, and returns the manifest's path.

    A row is {"id", "text", "image" | "speech" | "music": path relative to `out`, "attributes"}. Item i of a
    medium depends only on the seed, the split and i. `out` appears only when it is complete; if it already
    holds the same request, nothing is done; another small world there is replaced.

    Raises:
      UserError: unknown split, negative count, or `out` holds something that is not a small world.
    """
    out = Path(out)
    counts = {"image": images, "speech": speech, "music": music}
    _check(out, split, counts)
    request = {"version": VERSION, "split": split, "seed": seed, **counts}
    if _existing_request(out) == request:
        return out / "manifest.jsonl"
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for folder in FOLDERS.values():
            (temporary / folder).mkdir(parents=True)
        with (
            open(temporary / "manifest.jsonl", "w", encoding="utf-8") as manifest,
            tqdm(total=sum(counts.values()), desc=f"small world, {split}", unit="item", disable=None) as bar,
        ):
            for modality in MODALITIES:
                for number in range(counts[modality]):
                    row = _write_item(temporary, modality, split, seed, number)
                    manifest.write(json.dumps(row) + "\n")
                    bar.update()
        (temporary / "world.json").write_text(json.dumps(request) + "\n")
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / "manifest.jsonl"


def _check(out: Path, split: str, counts: dict[str, int]) -> None:
    if split not in captions.SPLITS:
        raise UserError(f"Unknown split {split!r}; it is one of {', '.join(captions.SPLITS)}.")
    for modality, count in counts.items():
        if count < 0:
            raise UserError(f"The number of {FOLDERS[modality]} is {count}; give zero or more.")
    if out.exists() and _existing_request(out) is None and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds something that is not a small world; give another --out.")


def _existing_request(out: Path) -> dict | None:
    marker = out / "world.json"
    return json.loads(marker.read_text()) if marker.is_file() else None


def _write_item(root: Path, modality: str, split: str, seed: int, number: int) -> dict:
    rng = np.random.default_rng([seed, captions.SPLITS.index(split), MODALITIES.index(modality), number])
    text, attributes, save = _MAKERS[modality](split, number, rng)
    path = f"{FOLDERS[modality]}/{number:06d}.{'png' if modality == 'image' else 'wav'}"
    save(root / path)
    name = f"{split}-{modality}-{number:06d}"
    return {"id": name, "text": text, modality: path, "attributes": attributes}


def _choose(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def make_image(split: str, number: int, rng: np.random.Generator) -> tuple[str, dict, Callable]:
    """A caption, its attributes, and a function that saves the picture under a path."""
    choices = captions.of_split(_choose(rng, IMAGE_SHARES[split]), split)
    attributes = choices[rng.integers(len(choices))]
    if split == "train" and attributes["kind"] == "pair" and rng.random() < READING_ORDER:
        attributes = captions.canonical(attributes)
    pixels = images.draw(attributes, rng, split)
    return captions.caption(attributes), attributes, Image.fromarray(pixels).save


def make_speech(split: str, number: int, rng: np.random.Generator) -> tuple[str, dict, Callable]:
    """A sentence, its voice, and a function that saves the wave.

    Every second held-out sentence is spoken by a held-out voice.
    """
    choices = captions.sentences(split)[_choose(rng, SENTENCE_SHARES)]
    text = choices[rng.integers(len(choices))]
    voices = speech.HELDOUT_VOICES if split == "heldout" and number % 2 else speech.TRAIN_VOICES
    voice = str(rng.choice(voices))
    wave = speech.speak(text, voice, rng)
    return text, {"kind": "speech", "voice": voice}, lambda path: _write_wave(path, wave, speech.SAMPLE_RATE)


def make_music(split: str, number: int, rng: np.random.Generator) -> tuple[str, dict, Callable]:
    """A caption, its attributes, and a function that saves the wave under a path."""
    choices = captions.of_split("music", split)
    attributes = choices[rng.integers(len(choices))]
    wave = music.render(attributes, rng)
    return captions.caption(attributes), attributes, lambda path: _write_wave(path, wave, music.SAMPLE_RATE)


def _write_wave(path: Path, wave: np.ndarray, sample_rate: int) -> None:
    soundfile.write(path, wave, sample_rate, subtype="PCM_16")


_MAKERS = {"image": make_image, "speech": make_speech, "music": make_music}
