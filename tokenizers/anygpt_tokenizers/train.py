"""Trains a codec or SoundStorm: `python -m anygpt_tokenizers.train --config=FILE --data=DIR --out=DIR`.

One loop for every family. What differs (examples, loss, evaluation) is a `Training` object; the loop owns the
optimizer, the jitted step, progress, saving and the record of what was run. A run that was stopped continues
from its last save (every `config.save_every` steps) when it is started again, to the bit as if it had never
stopped. One that has ended is left as it is.
"""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

import jax
import numpy as np
import optax
from absl import flags
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import config_dict
from tqdm import tqdm

from anygpt_tokenizers import cli, resume
from anygpt_tokenizers.field_kinds import check_kind, is_number
from anygpt_tokenizers.optimizer import make_optimizer

PyTree = Any
Examples = Sequence

# Whole numbers above 0 in every family that has them. A stopped run goes on with others of the first line's;
# keep_in_memory is none of those: it decides whether the held-out tenth is of all files or of usable ones.
CHANGE_NO_STEP = ("log_every", "save_every", "evaluate_clips", "evaluate_pictures")
COUNTS = (*CHANGE_NO_STEP, "batch_size")
IN_EVERY_FAMILY = ("kind", "seed", "steps", "batch_size", "log_every", "save_every", "optimizer")
SIZES = ("image_size", "patch_size", "filters", "groups")  # of config.codec


class Trained(Protocol):
    """A codec, or SoundStorm."""

    def save_pretrained(self, directory: str) -> None:
        """Writes config.json and weights.safetensors."""


class Training(Protocol):
    """What a codec family brings to the loop; constructed from the config.

    `state` is what changes otherwise than by the optimizer (moving averages of codebooks, say, or
    discriminators that learn on their own); it may be an empty dict. `name` is for the progress bar.
    """

    name: str

    def read_examples(self, data_dir: str) -> Examples:
        """The media that DIR/manifest.jsonl lists, [N, …] or a list if sizes differ; UserError if none."""

    def init(self, rng: jax.Array, examples: Examples) -> tuple[PyTree, PyTree]:
        """Initial `(params, state)`; may look at the examples (data-dependent codebooks)."""

    def sample_batch(self, examples: Examples, rng: np.random.Generator) -> PyTree:
        """One batch of numpy arrays, always of the same shapes."""

    def loss(self, params: PyTree, state: PyTree, batch: PyTree, rng: jax.Array) -> tuple[jax.Array, tuple]:
        """The scalar loss and `(new_state, metrics)`, metrics a flat dict of scalars; is traced."""

    def to_codec(self, params: PyTree, state: PyTree) -> Trained:
        """The codec of these parameters."""

    def read_trained(self, directory: str) -> Trained:
        """Reads what `to_codec(…).save_pretrained` wrote."""

    def evaluate(self, codec: Trained, heldout: Examples) -> dict:
        """Figures of a codec as it is on disk (weights already rounded), JSON-serialisable."""

    # Optional: `after_update(params, state) -> (params, state)`, traced, changes parameters otherwise than by
    # the optimizer after its step (codes that are moved, say).
    # Optional: `check_heldout(heldout)` raises UserError before the first step if none of it can be used.


def build_training(config: config_dict.ConfigDict) -> Training:
    """The `Training` of `config.kind`; UserError lists the kinds that there are."""
    if config.kind == "image":
        from anygpt_tokenizers.image_training import ImageTraining

        return ImageTraining(config)
    if config.kind == "vqgan":
        from anygpt_tokenizers.vqgan_training import VqganTraining

        return VqganTraining(config)
    if config.kind == "audio":
        from anygpt_tokenizers.audio_training import AudioTraining

        return AudioTraining(config)
    if config.kind == "soundstorm":
        from anygpt_tokenizers.soundstorm_training import SoundStormTraining

        return SoundStormTraining(config)
    if config.kind == "seed_stage1":
        from anygpt_tokenizers.seed_stage1 import SeedStage1Training

        return SeedStage1Training(config)
    if config.kind == "seed_stage2":
        from anygpt_tokenizers.seed_stage2 import SeedStage2Training

        return SeedStage2Training(config)
    kinds = '"image", "vqgan", "audio", "soundstorm", "seed_stage1" and "seed_stage2"'
    raise cli.UserError(f"config.kind is {config.kind!r}; there are {kinds}.")


def make_step(training: Training, optimizer: optax.GradientTransformation) -> Callable:
    """The jitted update `(carry, batch, key, step) -> (carry, metrics)`; the carry's buffers are reused."""

    def step_fn(carry: tuple, batch: PyTree, key: jax.Array, step: jax.Array) -> tuple[tuple, dict]:
        params, state, opt_state = carry
        grad_fn = jax.value_and_grad(training.loss, has_aux=True)
        (loss, (state, metrics)), grads = grad_fn(params, state, batch, jax.random.fold_in(key, step))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        if hasattr(training, "after_update"):
            params, state = training.after_update(params, state)
        metrics = dict(metrics, loss=loss, grad_norm=optax.global_norm(grads))
        return (params, state, opt_state), metrics

    return jax.jit(step_fn, donate_argnums=0)


def train_codec(
    config: config_dict.ConfigDict, data: str, out: str, heldout: str | None = None, command: str = ""
) -> dict:
    """Trains the codec of `config` on the media under `data` and writes it to `out`.

    Args:
      config: see configs/tokenizers/ and configs/soundstorm.py.
      data: a directory with a manifest.jsonl.
      out: receives config.json, weights.safetensors, metrics.json and train_log.jsonl; until the end also the
        state to continue from, if the run is stopped.
      heldout: another such directory for the final figures; by default the last tenth of `data`.
      command: what the user typed, for the record.

    Returns:
      The contents of metrics.json; those that are there, if this run has ended in `out` before.

    Raises:
      UserError: a setting that makes no training, no usable data, a loss that is not finite (names the
        step), or an `out` that another run, with other settings, was stopped or has ended in, or that holds
        a codec of no run.
    """
    check_settings(config)
    training = build_training(config)
    examples = training.read_examples(data)
    if heldout:
        heldout_examples = training.read_examples(heldout)
    else:
        kept = max(1, len(examples) // 10)
        examples, heldout_examples = examples[:-kept], examples[-kept:]
    if len(examples) == 0:
        raise cli.UserError(f"{data} holds too few examples to train on; generate or list more.")
    settings = _settings(config, examples)
    if done := resume.finished(out, settings):
        note = f"Nothing to train: {out} holds the finished run of {config.steps} steps."
        print(note, file=sys.stderr, flush=True)
        return done
    if hasattr(training, "check_heldout"):
        training.check_heldout(heldout_examples)

    params, state, last, seconds = _optimize(config, training, examples, out, settings)
    training.to_codec(params, state).save_pretrained(out)
    metrics = {
        "command": command,
        resume.SETTINGS: settings,
        "steps": config.steps,
        "seconds": round(seconds, 1),
        "examples": len(examples),
        "parameters": sum(int(p.size) for p in jax.tree.leaves(params)),
        "train": last,
        "heldout": {
            "examples": len(heldout_examples),
            **training.evaluate(training.read_trained(out), heldout_examples),
        },
    }
    resume.record(out, metrics)
    return metrics


def check_settings(config: config_dict.ConfigDict) -> None:
    """UserError names a number in the config with which no family can train, or a missing field."""
    cli.check_fields(config, IN_EVERY_FAMILY, "anygpt_tokenizers.train")
    check_kind("config.steps", config.steps, int, zero=True)
    codec = config.get("codec", {})
    for place, fields, names in [("config", config, COUNTS), ("config.codec", codec, SIZES)]:
        for name in names:
            if name in fields:
                check_kind(f"{place}.{name}", fields[name], int)
    scale = config.get("crop_scale", (1.0, 1.0))
    if len(scale) != 2 or not all(map(is_number, scale)) or not 0 < scale[0] <= scale[1] <= 1:
        raise cli.UserError(
            f"config.crop_scale is {tuple(scale)}; it must be two shares of a picture's area, the smallest "
            "and the largest, above 0 and at most 1, such as (0.8, 1.0)."
        )


def _optimize(
    config: config_dict.ConfigDict, training: Training, examples: Examples, out: str, settings: dict[str, Any]
) -> tuple[PyTree, PyTree, dict, float]:
    """Runs all steps; returns `(params, state, the last logged metrics, seconds)`."""
    key = jax.random.key(config.seed)
    optimizer = make_optimizer(config)
    params, state = training.init(jax.random.fold_in(key, config.steps), examples)
    carry = (params, state, optimizer.init(params))
    os.makedirs(out, exist_ok=True)
    carry, first, spent = resume.load(out, settings, carry)
    place_batch, place_carry = _placement(config)
    carry = place_carry(carry)
    step_fn = make_step(training, optimizer)
    started = time.time() - spent
    logged = {}
    with (
        _log(os.path.join(out, resume.LOG), first) as log,
        tqdm(
            range(first, config.steps),
            desc=f"train {training.name}",
            unit="step",
            mininterval=1,
            initial=first,
            total=config.steps,
        ) as progress,
    ):
        for step in progress:
            # The batch is a function of (seed, step), so that a run is repeatable whatever ran before it.
            batch = training.sample_batch(examples, np.random.default_rng((config.seed, step)))
            carry, metrics = step_fn(carry, place_batch(batch), key, np.int32(step))
            if not math.isfinite(float(metrics["loss"])):
                raise cli.UserError(
                    f"The loss is not finite at step {step}; lower config.optimizer.learning_rate "
                    f"(now {config.optimizer.learning_rate}) or look at the data."
                )
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                logged = {name: round(float(value), 5) for name, value in metrics.items()}
                log.write(json.dumps({"step": step + 1, **logged}) + "\n")
                log.flush()
                progress.set_postfix({name: f"{value:.3g}" for name, value in logged.items()})
            if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                training.to_codec(*carry[:2]).save_pretrained(out)
                resume.save(out, settings, carry, step + 1, time.time() - started)
    return carry[0], carry[1], logged, time.time() - started


def _settings(config: config_dict.ConfigDict, examples: Examples) -> dict[str, Any]:
    """What makes a run the same: its data's size and the config, but for what changes no step."""
    fields = traverse_util.flatten_dict(json.loads(config.to_json_best_effort()), sep=".")
    kept = {f"config.{name}": value for name, value in fields.items() if name not in CHANGE_NO_STEP}
    return {**kept, "number of examples": len(examples)}


def _placement(config: config_dict.ConfigDict) -> tuple[Callable, Callable]:
    """How batches and the carry are put on the devices: batches split over all of them, if they divide."""
    devices = jax.local_devices()
    if len(devices) == 1 or config.batch_size % len(devices):
        return (lambda batch: batch), (lambda carry: carry)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    return (lambda batch: jax.device_put(batch, split)), (lambda carry: jax.device_put(carry, whole))


def _log(path: str, steps: int) -> IO[str]:
    """The log, open for appending after what it says about the first `steps` steps."""
    kept = []
    if steps and os.path.exists(path):
        with open(path) as file:
            kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= steps]
    with open(path, "w") as file:
        file.writelines(kept)
    return open(path, "a")


def define_flags() -> None:
    """The flags of this entry point; called only when it is the program."""
    cli.define_config_flag(help="codec config, e.g. configs/tokenizers/image_small.py")
    flags.DEFINE_string("data", None, "directory with a manifest.jsonl and the media it lists")
    flags.DEFINE_string("heldout", None, "directory for the final figures (default: a tenth of --data)")
    flags.DEFINE_string("out", None, "directory for the trained codec")


def main(_: list[str]) -> None:
    for name in ("config", "data", "out"):
        if flags.FLAGS[name].value is None:
            raise cli.UserError(f"--{name} is missing (see python -m anygpt_tokenizers.train --help).")
    command = f"python -m anygpt_tokenizers.train {shlex.join(sys.argv[1:])}"
    f = flags.FLAGS
    metrics = train_codec(f.config, f.data, f.out, f.heldout, command)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
