"""SoundStorm's network at its published size against soundstorm-pytorch 0.3.1, on random weights.

    pip install torch einops beartype==0.16.4 && pip install --no-deps soundstorm-pytorch==0.3.1
    python benchmarks/parity_soundstorm.py [--frames=20]

Prints one JSON line. Takes 7 GB of memory and 3 GB of disk for a while.
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

from soundstorm_oracle import logits_of, original_network
from soundstorm_states import random_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20)
    frames = parser.parse_args().frames
    spec = SoundStormSpec()
    width = spec.heads * spec.head_dim
    state = random_state(spec.dim, spec.depth, width, spec.levels, spec.codebook_size, spec.semantic_size)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_size + 1, (1, frames, spec.levels))
    semantic = rng.integers(0, spec.semantic_size, (1, frames))
    begin = time.process_time()
    expected = logits_of(original_network(state, spec.heads), state, codes, semantic)
    torch_seconds = time.process_time() - begin
    with tempfile.TemporaryDirectory() as folder:
        safetensors.numpy.save_file(state, Path(folder) / "model.safetensors")
        keys, parameters = len(state), sum(value.size for value in state.values())
        del state
        model = import_soundstorm(Path(folder) / "model.safetensors", Path(folder) / "out", spec.heads)
    assert model.spec == spec
    begin = time.process_time()
    logits = model.net.apply({"params": model.params}, codes, semantic, jnp.ones((1, frames), bool))
    difference = np.asarray(logits) - expected
    row = {
        "keys": keys,
        "parameters": parameters,
        "parameters_read": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "logits": expected.size,
        "standard_deviation": float(expected.std()),
        "largest_logit": float(np.abs(expected).max()),
        "error_rms": float(np.sqrt(np.mean(difference**2))),
        "largest_error": float(np.abs(difference).max()),
        "likeliest_equal": int((np.asarray(logits).argmax(-1) == expected.argmax(-1)).sum()),
        "likeliest": expected[..., 0].size,
        "cpu_seconds_torch": torch_seconds,
        "cpu_seconds_jax": time.process_time() - begin,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
