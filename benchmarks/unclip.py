"""Speed, parity and the price of few steps of the unCLIP decoder, beside diffusers, on random weights.

    pip install torch transformers && pip install --no-deps diffusers==0.42.1
    python benchmarks/unclip.py --what=small    # the pipeline of tests/unclip_oracles.py, 20 steps, wider
    python benchmarks/unclip.py --what=steps    # how far few steps are from 200
    python benchmarks/unclip.py --what=full     # published size: one UNet evaluation, one VAE decode; 12 GB

Prints JSON lines. Seconds are the best of `--repeats` runs, after compilation; "cpu" is the time of all
threads together, which tells more on a busy machine. Both sides do the same work on all cores that the
process may run on, in turn, and each is the first in every other round. Weights go through files and the
importer.
"""

import argparse
import functools
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

import unclip_oracles as oracles
from anygpt_tokenizers import diffusion_schedules as schedules
from anygpt_tokenizers import unclip
from anygpt_tokenizers.unclip_importer import import_unclip
from anygpt_tokenizers.unclip_unet import UNet
from anygpt_tokenizers.unclip_vae import VaeDecoder

SMALL = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": (64, 128, 128, 128),
        "attention_head_dim": (2, 4, 4, 4),
    },
    "vae": {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8},
}
FULL = {
    "unet": oracles.FULL_UNET,
    "vae": oracles.FULL_VAE,
    "text": {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_hidden_layers": 1,
        "max_position_embeddings": 77,
    },
}


def imported(pipeline) -> unclip.UnclipDecoder:
    """What the importer makes of the files that diffusers writes."""
    with tempfile.TemporaryDirectory() as folder:
        oracles.save(pipeline, Path(folder) / "source")
        import_unclip(Path(folder) / "source", Path(folder) / "decoder")
        return unclip.UnclipDecoder.from_pretrained(Path(folder) / "decoder")


def timed(function: Callable) -> tuple[tuple[float, float], np.ndarray]:
    """((seconds, CPU seconds), result)."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = np.asarray(function())
    return (time.perf_counter() - start, time.process_time() - start_cpu), result


def compare(name: str, theirs: Callable, ours: Callable, arguments: tuple, repeats: int) -> None:
    """Prints one line for two functions that should give the same array; `ours` is jitted."""
    start = time.process_time()
    compiled = ours.lower(*arguments).compile()
    compilation = time.process_time() - start
    sides = {"torch": theirs, "jax": lambda: compiled(*arguments)}
    times, results = {side: [] for side in sides}, {}
    for repeat in range(repeats):
        for side in list(sides)[:: -1 if repeat % 2 else 1]:
            taken, results[side] = timed(sides[side])
            times[side].append(taken)
    expected = results["torch"]
    error = np.abs(results["jax"] - expected)
    line = {
        "what": name,
        **{f"{side}_seconds": round(min(taken)[0], 3) for side, taken in times.items()},
        **{f"{side}_cpu": round(min(cpu for _, cpu in taken), 3) for side, taken in times.items()},
        "jax_compilation_cpu": round(compilation, 1),
        "largest_error": float(error.max()),
        "expected_rms": float(np.sqrt(np.mean(expected**2))),
    }
    print(json.dumps(line), flush=True)


def arguments_of(decoder, inputs: unclip.Inputs, schedule: str, steps: int) -> tuple:
    """What `draw` takes after the sizes, for a schedule with guidance 10."""
    table = schedules.make_table(schedule, decoder.spec.noise, steps)
    return decoder.weights, inputs, table, np.float32(10), np.int32(0)


def draw(spec: unclip.UnclipSpec, params: dict, *arguments) -> jax.Array:
    """The decoder's own program without its rounding to 0..255: colours [B, H, W, 3] about -1..1."""
    latents = unclip.denoise(spec, jnp.float32, params, *arguments)
    return VaeDecoder(spec.vae).apply({"params": params["vae"]}, latents)


def inputs_of(pipeline, rows: int) -> tuple[tuple, unclip.Inputs]:
    """The same random inputs for both sides."""
    embeddings, latents, noise = oracles.random_inputs(pipeline, rows)
    ours = embeddings.numpy(), noise.numpy(), None, None, oracles.channels_last(latents), None
    return (embeddings, latents, noise), unclip.Inputs(*ours)


def small(repeats: int) -> None:
    """The whole pipeline for batches of 1 and 4."""
    pipeline = oracles.random_pipeline(**SMALL)
    decoder = imported(pipeline)
    for rows in (1, 4):
        theirs, ours = inputs_of(pipeline, rows)
        compare(
            f"small pipeline, plms, 20 steps, VAE decode, batch {rows}: colours",
            lambda theirs=theirs: oracles.channels_last(oracles.run(pipeline, *theirs).colours),
            jax.jit(functools.partial(draw, decoder.spec)),
            arguments_of(decoder, ours, "plms", 20),
            repeats,
        )


def steps() -> None:
    """Relative RMS distance of the final latents to those of 200 steps of "plms" from the same noise."""
    pipeline = oracles.random_pipeline()
    decoder = imported(pipeline)
    _, inputs = inputs_of(pipeline, 4)

    @jax.jit
    def evaluate(state: schedules.State, row: schedules.Table) -> schedules.State:
        """One evaluation, as a schedule of its own, so that all lengths share one program."""
        once = schedules.Table(*(part[None] for part in row))
        return unclip.evaluations(
            decoder.spec, jnp.float32, decoder.weights, inputs, state, once, 10.0, jnp.int32(0)
        )

    def end(schedule: str, count: int) -> np.ndarray:
        table = schedules.make_table(schedule, decoder.spec.noise, count)
        state = schedules.start(jnp.asarray(inputs.latents))
        for index in range(len(table.time)):
            state = evaluate(state, schedules.Table(*(part[index] for part in table)))
        return np.asarray(state.latents)

    reference = end("plms", 200)
    for schedule in schedules.SCHEDULES:
        line = {"what": "distance to 200 steps of plms", "schedule": schedule}
        for count in (5, 10, 20, 50, 200):
            difference = end(schedule, count) - reference
            line[f"{count} steps"] = round(float(np.sqrt(np.mean(difference**2)) / reference.std()), 4)
        print(json.dumps(line), flush=True)


@torch.no_grad()
def full(repeats: int) -> None:
    """One evaluation of the UNet (batch 1) and one decode of the autoencoder at the published size."""
    pipeline = oracles.random_pipeline(**FULL)
    decoder = imported(pipeline)
    _, latents, _ = oracles.random_inputs(pipeline, 1)
    label = torch.randn(1, decoder.spec.unet.class_dim)
    text = torch.randn(1, decoder.spec.text.positions, decoder.spec.unet.text_dim)
    arrays = oracles.channels_last(latents), np.array([951], np.int32), text.numpy(), label.numpy()
    unet, vae = jax.jit(UNet(decoder.spec.unet).apply), jax.jit(VaeDecoder(decoder.spec.vae).apply)
    vae_weights = jax.device_put(decoder.params.pop("vae"))
    unet_weights = jax.device_put(decoder.params.pop("unet"))
    moment = torch.tensor([951])
    compare(
        "UNet, one evaluation at 96 × 96",
        lambda: oracles.channels_last(
            pipeline.unet(latents, moment, encoder_hidden_states=text, class_labels=label).sample
        ),
        unet,
        ({"params": unet_weights}, *arrays),
        repeats,
    )
    scaled = latents / pipeline.vae.config.scaling_factor
    compare(
        "VAE decode, 96 × 96 latents -> 768 × 768",
        lambda: oracles.channels_last(pipeline.vae.decode(scaled).sample),
        vae,
        ({"params": vae_weights}, arrays[0]),
        repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("small", "steps", "full"), default="small")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.what == "steps":
        steps()
    else:
        {"small": small, "full": full}[args.what](args.repeats)


if __name__ == "__main__":
    main()
