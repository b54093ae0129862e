"""Random weights of a narrow VGG-16 for the perceptual distance."""

import numpy as np
from anygpt_tokenizers.perceptual import STAGES


def vgg_arrays(width: int = 2) -> dict[str, np.ndarray]:
    """`width` channels in every layer, under torchvision's names."""
    rng, arrays, channels = np.random.default_rng(0), {}, 3
    for number in (number for stage in STAGES for number in stage):
        kernel = rng.normal(size=(width, channels, 3, 3)) / np.sqrt(9 * channels)
        arrays[f"features.{number}.weight"] = kernel.astype(np.float32)
        arrays[f"features.{number}.bias"] = np.full(width, 0.1, np.float32)
        channels = width
    return arrays
