"""The small codecs of configs/tokenizers with random weights, saved as `config.codecs` wants them."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from anygpt_tokenizers.audio_codec import AudioCodec, SeanetCodec
from anygpt_tokenizers.cli import load_config
from anygpt_tokenizers.image_tokenizer import ImageCodec, ImageTokenizer

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"


def save_random_codecs(folder: Path) -> list[str]:
    """Saves an image, a speech and a music codec below `folder`; returns the flags that name them."""
    for modality in ("speech", "music"):
        _random_audio_codec(modality).save_pretrained(folder / modality)
    _random_image_codec().save_pretrained(folder / "image")
    return [f"--config.codecs.{name}={folder / name}" for name in ("image", "speech", "music")]


def _random_image_codec() -> ImageCodec:
    config = load_config(f"{CONFIGS / 'image_small.py'}:dummy").codec.to_dict()
    size = config["image_size"]
    keep = np.ones((1, config["num_codebooks"]), np.float32)
    images = np.zeros((1, size, size, 3), np.float32)
    return ImageCodec(config, _random_params(ImageTokenizer(config), images, keep))


def _random_audio_codec(modality: str) -> AudioCodec:
    config = load_config(f"{CONFIGS / modality}_small.py:dummy").codec.to_dict()
    module = SeanetCodec.from_config(config)
    wave = np.zeros((1, module.hop_length * 4), np.float32)
    rng = np.random.default_rng(0)
    shape = (config["num_codebooks"], config["codebook_size"], config["dimension"])
    codebooks = rng.normal(size=shape).astype(np.float32)
    return AudioCodec(config, {"model": _random_params(module, wave), "codebooks": codebooks})


def _random_params(module: nn.Module, *inputs: np.ndarray) -> dict:
    """Normal numbers of the scale 1/√(fan in): nothing is compiled, as `init` would."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda x: rng.normal(size=x.shape) / max(1, np.prod(x.shape[:-1])) ** 0.5, shapes)
