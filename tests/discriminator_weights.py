"""Random discriminators at SpeechTokenizer's sizes; the same numbers for the original and for ours."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers.audio_discriminators import Discriminators
from flax import traverse_util

PUBLISHED = Discriminators((2, 3, 5, 7, 11), 3, (1024, 2048, 512, 256, 128))
SAMPLES = 4001


def random_variables(networks: Discriminators = PUBLISHED) -> dict:
    """Variables of the discriminators, as numpy arrays made from each one's name."""
    shapes = jax.eval_shape(networks.init, jax.random.key(0), jnp.zeros((1, SAMPLES)))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    values = {name: _value(name, leaf.shape) for name, leaf in flat.items()}
    for name in values:
        if name.startswith("spectral/") and name.endswith("/right"):
            stem = name.removeprefix("spectral/").removesuffix("/right")
            matrix = values[f"params/{stem}/kernel"].reshape(-1, flat[name].shape[0]).astype(np.float64)
            right = values[name]
            for _ in range(3):
                left = matrix @ right
                left /= np.linalg.norm(left)
                right = left @ matrix
                right /= np.linalg.norm(right)
            values[name], values[f"spectral/{stem}/left"] = right, left
    return traverse_util.unflatten_dict(
        {name: np.asarray(value, np.float32) for name, value in values.items()}, sep="/"
    )


def _value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("kernel"):
        return rng.standard_normal(shape, np.float32)
    if name.endswith("size"):
        return rng.uniform(1.0, 2.0, shape)
    return 0.1 * rng.standard_normal(shape)
