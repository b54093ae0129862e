"""SEED-2 at its published size against transformers' BLIP-2 classes, on random weights.

    pip install torch transformers==4.57.6
    python benchmarks/parity_seed.py --folder=NEW_DIR [--images=2] [--small]

Writes random files of the published layout to the folder (4.6 GB, and the imported codec as much again; both
are removed), runs both sides, each in float32, one after the other, and prints one JSON line: by stage the
largest and the mean error and the size of the values, how many codes are equal, and the seconds of the
encoder. Peak memory is about 8 GB.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from anygpt_tokenizers.safetensors_file import write_arrays
from anygpt_tokenizers.seed import SeedCodec
from anygpt_tokenizers.seed_importer import import_seed
from anygpt_tokenizers.seed_net import SeedSpec
from seed_oracle import Oracle
from seed_states import SMALL, random_files, random_pictures, stages


def run_reference(folder: Path, spec: SeedSpec, pixels: np.ndarray) -> tuple[dict, float]:
    """Every stage by the original classes, and the seconds of the encoder; writes the random files.

    Their codebook lies about the pictures' latents: one of plain noise would answer with a code or two.
    """
    quantizer, vit = random_files(spec)
    oracle = Oracle(quantizer, vit, spec)
    start = time.perf_counter()
    features = oracle.features(pixels)
    queries = oracle.queries(features)
    latents = oracle.latents(queries)
    seconds = time.perf_counter() - start
    spread_codebook(quantizer["quantize.embedding.weight"], latents.numpy())
    start = time.perf_counter()
    codes = oracle.quantize(latents)
    seconds += time.perf_counter() - start
    for name, state in (("quantizer", quantizer), ("vit", vit)):
        shapes = {key: value.shape for key, value in state.items()}
        write_arrays(folder / f"{name}.safetensors", shapes, np.dtype("float32"), state.__getitem__)
    outputs = {
        "features": features,
        "queries": queries,
        "latents": latents,
        "codes": codes,
        "embedding": oracle.embed(codes),
    }
    return {name: value.numpy() for name, value in outputs.items()}, seconds


def spread_codebook(book: np.ndarray, latents: np.ndarray) -> None:
    """Rewrites the codebook [N, D] as latents [B, 32, D] plus noise as large as they differ in a picture."""
    rng, rows = np.random.default_rng(0), latents.reshape(-1, latents.shape[-1])
    spread = (latents - latents.mean(1, keepdims=True)).std((0, 1))
    book[:] = rows[rng.integers(0, len(rows), len(book))] + spread * rng.normal(size=book.shape)


def run_ours(codec: SeedCodec, pixels: np.ndarray, codes: np.ndarray) -> tuple[dict, float]:
    """The same by the imported codec; the embedding is that of the codes given."""
    outputs = {**stages(codec, pixels), "codes": codec.encode(pixels)[..., 0]}
    start = time.perf_counter()
    codec.encode(pixels)
    seconds = time.perf_counter() - start
    return {**outputs, "embedding": codec.embed(codes)}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="does not exist yet; removed at the end")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="the sizes of the tests, for a trial")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    spec = SMALL if args.small else SeedSpec()
    pixels = random_pictures(args.images, spec.image_size)
    try:
        expected, torch_seconds = run_reference(args.folder, spec, pixels)
        paths = args.folder / "quantizer.safetensors", args.folder / "vit.safetensors"
        codec, report = import_seed(
            *paths,
            args.folder / "codec",
            num_heads=(spec.vision_heads, spec.qformer_heads, spec.head_heads),
        )
        actual, our_seconds = run_ours(codec, pixels, expected["codes"])
    finally:
        shutil.rmtree(args.folder)
    row = {"images": args.images, "keys": report.used + report.training_only}
    for name in ("features", "queries", "latents", "embedding"):
        errors = np.abs(actual[name] - expected[name])
        row[name] = {
            "max_error": float(errors.max()),
            "mean_error": float(errors.mean()),
            "std": float(expected[name].std()),
        }
    row["codes_equal"] = int((actual["codes"] == expected["codes"]).sum())
    row["codes"] = expected["codes"].size
    row["codes_used"] = len(np.unique(expected["codes"]))
    row["seconds"] = {"torch": torch_seconds, "jax": our_seconds}
    row["threads"] = torch.get_num_threads()
    print(json.dumps(row))


if __name__ == "__main__":
    main()
