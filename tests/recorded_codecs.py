"""The tiny codecs of tests/fixtures, imported from the state dicts recorded there."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from anygpt_tokenizers import importers
from anygpt_tokenizers.published_codec import PublishedCodec

FIXTURES = Path(__file__).parent / "fixtures"
CASES = ("speech_elu", "speech_snake", "encodec_music", "encodec_causal")


def recorded(case: str) -> dict[str, np.ndarray]:
    """What tests/fixtures/make_audio_fixtures.py wrote."""
    with np.load(FIXTURES / f"audio_{case}.npz") as file:
        return dict(file)


def write_checkpoint(case: str, folder: Path, change=lambda state, config: None) -> None:
    """Writes config.json and model.safetensors as the original would, after `change` did its work."""
    arrays = recorded(case)
    config = json.loads(str(arrays["config"]))
    state = {
        key.removeprefix("state:"): np.asarray(value, np.float32)
        for key, value in arrays.items()
        if key.startswith("state:")
    }
    change(state, config)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def import_checkpoint(case: str, folder: Path, out: Path, **options) -> PublishedCodec:
    """Imports what `write_checkpoint` wrote."""
    if case.startswith("speech"):
        checkpoint = folder / "model.safetensors"
        return importers.import_speechtokenizer(checkpoint, folder / "config.json", out, **options)
    return importers.import_encodec(folder, out, **options)


def recorded_codec(case: str, folder: Path) -> PublishedCodec:
    """The case's codec, by way of files below `folder`."""
    write_checkpoint(case, folder / "checkpoint")
    return import_checkpoint(case, folder / "checkpoint", folder / "codec")
