"""Small directories of sound to train on, and reading what a run logged."""

import json
from pathlib import Path

import numpy as np
from anygpt_tokenizers.media_audio import write_audio

RATE = 16_000


def write_tones(folder: Path, modality: str, count: int = 6, **fields) -> Path:
    """`count` files of one second of tones that swell and fade, and their manifest.

    `fields`: more fields of a row, as functions of (wave, path without suffix) that return a file name.
    """
    rows = []
    for i in range(count):
        time = np.arange(RATE) / RATE
        swell = 0.6 + 0.4 * np.sin(2 * np.pi * (2 + i) * time)
        wave = (0.5 * swell * np.sin(2 * np.pi * 110 * (i + 2) * time)).astype(np.float32)
        write_audio(wave, folder / f"{i}.wav", RATE)
        made = {name: function(wave, folder / str(i)) for name, function in fields.items()}
        rows.append(json.dumps({"text": str(i), modality: f"{i}.wav", **made}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))
    return folder


def read_log(folder: Path) -> list[dict]:
    """The rows of train_log.jsonl."""
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
