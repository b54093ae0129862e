"""SoundStorm's network at its published size against soundstorm-pytorch 0.3.1, on random weights.

    pip install torch einops beartype==0.16.4 && pip install --no-deps soundstorm-pytorch==0.3.1
    python benchmarks/parity_soundstorm.py [--frames=20]

Prints two JSON lines. Takes 10 GB of memory and 3 GB of disk for a while.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from anygpt_tokenizers.soundstorm_net import SoundStormSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from soundstorm_oracle import as_initialised, logits_of, original_network
from soundstorm_states import random_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20)
    frames = parser.parse_args().frames
    spec = SoundStormSpec()
    width = spec.heads * spec.head_dim
    state = random_state(spec.dim, spec.depth, width, spec.levels, spec.codebook_size, spec.semantic_size)
    print(
        json.dumps(compare(as_initialised(state, spec.heads), frames, "the package's own start")), flush=True
    )
    print(json.dumps(compare(state, frames, "random norms and biases")), flush=True)


def compare(state: dict[str, np.ndarray], frames: int, weights: str) -> dict:
    """One row: how far the logits of the imported network are from the package's, in float32 and float64."""
    spec = SoundStormSpec()
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_size + 1, (1, frames, spec.levels))
    semantic = rng.integers(0, spec.semantic_size, (1, frames))
    net = original_network(state, spec.heads)
    begin = time.process_time()
    expected = logits_of(net, state, codes, semantic)
    torch_seconds = time.process_time() - begin
    exact = logits_of(net.double(), state, codes, semantic)
    del net
    with tempfile.TemporaryDirectory() as folder:
        safetensors.numpy.save_file(state, Path(folder) / "model.safetensors")
        model = import_soundstorm(Path(folder) / "model.safetensors", Path(folder) / "out", spec.heads)
    assert model.spec == spec

    def logits_in(dtype: type) -> np.ndarray:
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), model.params)
        return np.asarray(model.net.apply({"params": params}, codes, semantic, jnp.ones((1, frames), bool)))

    begin = time.process_time()
    logits = logits_in(np.float32)
    jax_seconds = time.process_time() - begin
    with jax.enable_x64(True):
        exact_logits = logits_in(np.float64)
    return {
        "weights": weights,
        "keys": len(state),
        "parameters": sum(value.size for value in state.values()),
        "parameters_read": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "logits": expected.size,
        "standard_deviation": float(expected.std()),
        "largest_logit": float(np.abs(expected).max()),
        "largest_error_float64": float(np.abs(exact_logits - exact).max()),
        "largest_error_float32": float(np.abs(logits - expected).max()),
        "error_rms_float32": float(np.sqrt(np.mean((logits - expected) ** 2))),
        "largest_rounding_of_torch": float(np.abs(expected - exact).max()),
        "largest_rounding_of_jax": float(np.abs(logits - exact).max()),
        "likeliest_equal": int((logits.argmax(-1) == expected.argmax(-1)).sum()),
        "likeliest": expected[..., 0].size,
        "cpu_seconds_torch": torch_seconds,
        "cpu_seconds_jax": jax_seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
