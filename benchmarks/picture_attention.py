"""Speed of the picture networks' attention beside torch's, at the published sizes: float32, the same threads.

    pip install torch
    JAX_PLATFORMS=cpu python benchmarks/picture_attention.py [--names=vit,coarse,text,middle,fine,vae]

Prints one JSON line per size: CPU milliseconds of all threads together, the less of two runs after a first,
and the largest difference.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from anygpt_tokenizers.attention import attention

# (rows, queries, keys, heads, width of a head)
SIZES = {
    "vit": (8, 257, 257, 16, 88),
    "coarse": (1, 576, 576, 20, 64),
    "text": (1, 9216, 77, 5, 64),
    "middle": (1, 2304, 2304, 10, 64),
    "fine": (1, 9216, 9216, 5, 64),
    "vae": (1, 9216, 9216, 1, 512),
}


def timed(function: Callable) -> tuple[float, np.ndarray]:
    """(CPU milliseconds, result)."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        result = np.asarray(function())
        taken.append(1e3 * (time.process_time() - start))
    return round(min(taken[1:]), 1), result


def compare(name: str) -> dict:
    """The line of a size."""
    rows, queries, keys, heads, width = SIZES[name]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(rows, n, heads, width)).astype(np.float32) for n in (queries, keys, keys)]
    tensors = [torch.from_numpy(array).transpose(1, 2) for array in arrays]
    placed, ours = jax.device_put(arrays), jax.jit(attention)

    def theirs() -> torch.Tensor:
        mixed = torch.nn.functional.scaled_dot_product_attention(*tensors)
        return mixed.transpose(1, 2).reshape(rows, queries, -1)

    torch_ms, expected = timed(theirs)
    jax_ms, result = timed(lambda: ours(*placed))
    error = float(np.abs(result - expected).max())
    return {"what": name, "torch": torch_ms, "jax": jax_ms, "largest_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", default=",".join(SIZES))
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in args.names.split(","):
        print(json.dumps(compare(name)), flush=True)


if __name__ == "__main__":
    main()
