"""The small codecs of configs/tokenizers before their first step, saved as `config.codecs` wants them."""

from pathlib import Path

import jax
import numpy as np
from anygpt_tokenizers.cli import load_config
from anygpt_tokenizers.codec import Codec
from anygpt_tokenizers.train import build_training

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"


def save_random_codecs(folder: Path) -> list[str]:
    """Saves an image, a speech and a music codec below `folder`; returns the flags that name them."""
    for modality in ("image", "speech", "music"):
        _random_codec(modality).save_pretrained(folder / modality)
    return [f"--config.codecs.{name}={folder / name}" for name in ("image", "speech", "music")]


def _random_codec(modality: str) -> Codec:
    config = load_config(f"{CONFIGS / modality}_small.py:dummy")
    rng = np.random.default_rng(0)
    if modality == "image":
        shape = (16, config.codec.image_size, config.codec.image_size, 3)
        examples = rng.integers(0, 255, shape, dtype=np.uint8)
    else:
        examples = [rng.normal(size=config.codec.sample_rate).astype(np.float32)]
    training = build_training(config)
    return training.to_codec(*training.init(jax.random.key(0), examples))
