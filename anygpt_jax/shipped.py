"""The small-world model that comes with the package: how it is stored, and how it is loaded.

anygpt_jax/assets/smallworld_model/
  config.json          {"model": DecoderConfig, "step", "storage"}
  weights.safetensors  parameters, "float16", or "int8" with a float16 scale per 64 values
  vocabulary.json, text.model

The codecs are those shipped with anygpt_tokenizers; the vocabulary's hashes bind them.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, shipped_codec
from flax import traverse_util

from anygpt_jax.checkpoint import LoadedModel, load_model
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import Vocabulary

SHIPPED = "shipped"
DIRECTORY = Path(__file__).parent / "assets" / "smallworld_model"
CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE, TEXT_MODEL_FILE = (
    "config.json",
    "weights.safetensors",
    "vocabulary.json",
    "text.model",
)
STORAGES = ("float16", "int8")
_BLOCK = 64  # neighbouring values that share a scale
_SCALE = ".scale"


def export(
    workdir: str | os.PathLike,
    out_dir: str | os.PathLike = DIRECTORY,
    step: int | None = None,
    storage: str = "float16",
) -> int:
    """Writes the model of a training run (newest checkpoint unless `step` is given) as a small directory.

    Args:
      storage: of the weights, one of STORAGES; int8 halves the file.
    Returns:
      Bytes of the weights file.
    """
    model = load_model(workdir, step)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(jax.device_get(model.params), sep="/")
    weights = safetensors.numpy.save(_store(flat, storage))
    (out_dir / WEIGHTS_FILE).write_bytes(weights)
    model.vocabulary.save(out_dir / VOCABULARY_FILE)
    model.text_tokenizer.save(out_dir / TEXT_MODEL_FILE)
    config = {"model": model.config.to_dict(), "step": model.step, "storage": storage}
    (out_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    return len(weights)


def _store(flat: Mapping[str, np.ndarray], storage: str) -> dict[str, np.ndarray]:
    """Float arrays as they are written: float16, or int8 with an array of scales beside it."""
    if storage not in STORAGES:
        raise UserError(f"Weights cannot be stored as {storage!r}; choose one of {', '.join(STORAGES)}.")
    stored = {}
    for name, value in sorted(flat.items()):
        value = np.asarray(value, np.float32)
        if storage == "float16" or value.size % _BLOCK:
            stored[name] = np.ascontiguousarray(value, np.float16)
            continue
        blocks = value.reshape(-1, _BLOCK)
        scales = np.maximum(np.abs(blocks).max(axis=1) / 127, 1e-7).astype(np.float16)
        rounded = np.round(blocks / scales[:, None].astype(np.float32)).clip(-127, 127)
        stored[name] = rounded.astype(np.int8).reshape(value.shape)
        stored[name + _SCALE] = scales
    return stored


def _restore(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `_store`: float32 arrays."""
    flat = {}
    for name, value in stored.items():
        if name.endswith(_SCALE):
            continue
        flat[name] = value.astype(np.float32)
        if name + _SCALE in stored:
            scales = stored[name + _SCALE].astype(np.float32)[:, None]
            flat[name] = (flat[name].reshape(-1, _BLOCK) * scales).reshape(value.shape)
    return flat


def is_shipped() -> bool:
    """Whether this copy of the package holds the trained model."""
    return (DIRECTORY / WEIGHTS_FILE).is_file()


def identity() -> str | None:
    """A hash of the shipped weights, None where there are none."""
    if not is_shipped():
        return None
    return hashlib.sha256((DIRECTORY / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def load_shipped(directory: str | os.PathLike = DIRECTORY) -> LoadedModel:
    """The model that `export` wrote, float32; UserError where there is none."""
    directory = Path(directory)
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
        stored = safetensors.numpy.load((directory / WEIGHTS_FILE).read_bytes())
    except OSError as error:
        raise UserError(
            f"There is no exported model in {str(directory)!r}; train one and give its --workdir."
        ) from error
    params = traverse_util.unflatten_dict(
        {name: jnp.asarray(value) for name, value in _restore(stored).items()}, sep="/"
    )
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
    tokenizer = TextTokenizer(directory / TEXT_MODEL_FILE)
    return LoadedModel(
        params,
        DecoderConfig(**config["model"]),
        vocabulary,
        tokenizer,
        ShippedCodecs(vocabulary),
        config["step"],
    )


def open_model(workdir: str, step: int | None = None) -> LoadedModel:
    """The model of a working directory, or the shipped one for "shipped"."""
    return load_shipped() if workdir == SHIPPED else load_model(workdir, step)


class ShippedCodecs(Mapping[str, Codec]):
    """The package's codecs of a vocabulary's modalities, each loaded when first asked for."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._loaded: dict[str, Codec] = {}

    def __getitem__(self, name: str) -> Codec:
        modality = self._vocabulary.modality(name)
        if name not in self._loaded:
            codec = shipped_codec(name)
            if modality.codec_hash not in (None, codec.hash):
                raise UserError(
                    f"The shipped {name} codec has hash {codec.hash} and the shipped model was trained with "
                    f"{modality.codec_hash}; reinstall the package."
                )
            self._loaded[name] = codec
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vocabulary.modalities)

    def __len__(self) -> int:
        return len(self._vocabulary.modalities)
