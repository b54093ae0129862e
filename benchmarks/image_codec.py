"""Speed of SEED-2's encoder beside transformers' BLIP-2 classes: random weights, float32, the same threads.

    pip install torch transformers==4.57.6
    python benchmarks/image_codec.py [--stages=small,block,qformer,codes] [--batches=1,8]

Prints one JSON line per stage and batch: seconds of either side (the best of `--repeats` after a first run,
which includes compilation), by the clock and summed over the cores, which other jobs disturb less; and the
largest difference, beside the standard deviation of the values.

Stages: "small" is the whole encoder at the sizes of the tests; the others have the published sizes: one block
of the vision tower on its 257 tokens, the Q-Former, and the choice of codes.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from anygpt_tokenizers import seed_layers
from anygpt_tokenizers.image_quantizers import nearest_code
from anygpt_tokenizers.seed_layout import VISION, sources_of
from anygpt_tokenizers.seed_net import SeedSpec
from anygpt_tokenizers.seed_qformer import CausalQFormer
from flax import traverse_util
from seed_oracle import Oracle
from seed_states import SMALL, random_codec, random_files, random_pictures

# The published widths with one block, and little elsewhere.
WIDE = dataclasses.replace(SeedSpec(), vision_layers=1, head_layers=1)
TOKENS = 1 + (WIDE.image_size // WIDE.patch_size) ** 2

Sides = tuple[Callable, Callable, Callable[[int], np.ndarray]]


def small() -> Sides:
    """(theirs, ours, input of a batch) of the whole encoder at the tests' sizes."""
    oracle = Oracle(*random_files(), SMALL)
    with tempfile.TemporaryDirectory() as folder:
        codec = random_codec(Path(folder))
        codec.encode(random_pictures(1))  # reads the weights

    def theirs(pixels: np.ndarray) -> torch.Tensor:
        return oracle.quantize(oracle.latents(oracle.queries(oracle.features(pixels))))

    return theirs, lambda pixels: codec.encode(pixels)[..., 0], random_pictures


def block() -> Sides:
    """The same of one block of ViT-g."""
    files = random_files(WIDE)
    oracle = Oracle(*files, WIDE)
    layer = oracle.vision.encoder.layers[0]
    params = jax.tree.map(lambda stack: stack[0], params_of(files)["vision"]["blocks"])
    module = seed_layers.Block(WIDE.vision_heads, WIDE.vision_hidden, False, jnp.dtype("float32"))
    weights = jax.device_put({"params": params})
    run = jax.jit(lambda weights, x: module.apply(weights, x)[0])
    return (
        lambda x: layer(torch.from_numpy(x), None),
        lambda x: run(weights, x),
        lambda batch: features(batch, WIDE.vision_dim),
    )


def qformer() -> Sides:
    """The same of the Q-Former, published size."""
    files = random_files(WIDE)
    oracle = Oracle(*files, WIDE)
    weights = jax.device_put({"params": seed_layers.laid_apart(params_of(files)["qformer"])})  # as SeedCodec
    module = CausalQFormer(
        WIDE.num_queries,
        WIDE.qformer_dim,
        WIDE.qformer_layers,
        WIDE.qformer_heads,
        WIDE.qformer_hidden,
        jnp.dtype("float32"),
    )
    run = jax.jit(module.apply)
    return (
        lambda x: oracle.queries(torch.from_numpy(x)),
        lambda x: run(weights, x),
        lambda batch: features(batch, WIDE.vision_dim),
    )


def codes() -> Sides:
    """The same of the nearest of 8192 codes."""
    book = features(1, WIDE.code_dim, WIDE.codebook_size)[0]
    tensor, placed, run = torch.from_numpy(book), jax.device_put(book), jax.jit(nearest_code)

    def theirs(x: np.ndarray) -> torch.Tensor:
        flat = torch.from_numpy(x).flatten(0, 1)
        distances = (flat**2).sum(1, keepdim=True) + (tensor**2).sum(1) - 2 * flat @ tensor.T
        return distances.argmin(1).reshape(x.shape[:2])

    return theirs, lambda x: run(placed, x), lambda batch: features(batch, WIDE.code_dim, WIDE.num_queries)


def params_of(files: tuple[dict, dict]) -> dict:
    """Our parameters of random files of the sizes `WIDE`, which the importer would refuse as incomplete."""
    tensors = {**files[0], **{VISION + key: value for key, value in files[1].items()}}
    params = {}
    for name, source in sources_of(WIDE).items():
        parts = [source.convert(tensors[key]) for key in source.keys]
        params[name] = np.stack(parts) if source.stacked else parts[0]
    return traverse_util.unflatten_dict(params, sep="/")


def features(batch: int, width: int, tokens: int = TOKENS) -> np.ndarray:
    """Noise of [batch, tokens, width]."""
    return np.random.default_rng(0).normal(size=(batch, tokens, width)).astype(np.float32)


STAGES = {"small": small, "block": block, "qformer": qformer, "codes": codes}


def best(function: Callable, x: np.ndarray, repeats: int) -> tuple[dict, np.ndarray]:
    """(seconds, result): of the first run, and the least of the later ones, by the clock and of the cores."""
    clock, cores = [], []
    for _ in range(repeats + 1):
        start, used = time.perf_counter(), time.process_time()
        result = np.asarray(function(x))
        clock.append(time.perf_counter() - start)
        cores.append(time.process_time() - used)
    return {"first": clock[0], "clock": min(clock[1:]), "cores": min(cores[1:])}, result


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    for name in args.stages.split(","):
        theirs, ours, inputs = STAGES[name]()
        for batch in map(int, args.batches.split(",")):
            x = inputs(batch)
            their_seconds, expected = best(theirs, x, args.repeats)
            our_seconds, actual = best(ours, x, args.repeats)
            row = {
                "stage": name,
                "batch": batch,
                "torch": their_seconds,
                "jax": our_seconds,
                "largest_error": float(np.abs(np.asarray(actual, np.float64) - expected).max()),
                "std": float(expected.std()),
            }
            print(json.dumps({**row, "threads": threads}), flush=True)


if __name__ == "__main__":
    main()
