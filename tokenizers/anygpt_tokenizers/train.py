"""Trains a small codec from scratch: `python -m anygpt_tokenizers.train --config=FILE --data=DIR --out=DIR`.

One loop for every family. What differs (examples, loss, evaluation) is a `Training` object; the loop owns the
optimizer, the jitted step, progress, saving and the record of what was run.
"""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import config_dict
from tqdm import tqdm

from anygpt_tokenizers import cli
from anygpt_tokenizers.codec import Codec, load_codec

PyTree = Any
Examples = Sequence[np.ndarray] | np.ndarray


class Training(Protocol):
    """What a codec family brings to the loop; constructed from the config.

    `state` is what changes without gradients (moving averages of codebooks, say); it may be an empty dict.
    """

    def read_examples(self, data_dir: str) -> Examples:
        """The media that DIR/manifest.jsonl lists, [N, …] or a list if sizes differ; UserError if none."""

    def init(self, rng: jax.Array, examples: Examples) -> tuple[PyTree, PyTree]:
        """Initial `(params, state)`; may look at the examples (data-dependent codebooks)."""

    def sample_batch(self, examples: Examples, rng: np.random.Generator) -> PyTree:
        """One batch of numpy arrays, always of the same shapes."""

    def loss(self, params: PyTree, state: PyTree, batch: PyTree, rng: jax.Array) -> tuple[jax.Array, tuple]:
        """The scalar loss and `(new_state, metrics)`, metrics a flat dict of scalars; is traced."""

    def to_codec(self, params: PyTree, state: PyTree) -> Codec:
        """The codec of these parameters."""

    def evaluate(self, codec: Codec, heldout: Examples) -> dict:
        """Figures of a codec as it is on disk (weights already rounded), JSON-serialisable."""


def build_training(config: config_dict.ConfigDict) -> Training:
    """The `Training` of `config.kind` ("image" or "audio")."""
    if config.kind == "image":
        from anygpt_tokenizers.image_training import ImageTraining

        return ImageTraining(config)
    if config.kind == "audio":
        from anygpt_tokenizers.audio_training import AudioTraining

        return AudioTraining(config)
    raise cli.UserError(f'config.kind is {config.kind!r}; there are "image" and "audio".')


def make_optimizer(config: config_dict.ConfigDict) -> optax.GradientTransformation:
    """Clipped AdamW under a linear warm-up and a cosine to zero; only matrices and kernels decay."""
    o = config.optimizer
    warmup = min(o.warmup, config.steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, o.learning_rate, warmup, config.steps)

    def decays(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    adamw = optax.adamw(schedule, b1=o.b1, b2=o.b2, weight_decay=o.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(o.clip), adamw)


def make_step(training: Training, optimizer: optax.GradientTransformation) -> Callable:
    """The jitted update `(carry, batch, key, step) -> (carry, metrics)`; the carry's buffers are reused."""

    def step_fn(carry: tuple, batch: PyTree, key: jax.Array, step: jax.Array) -> tuple[tuple, dict]:
        params, state, opt_state = carry
        grad_fn = jax.value_and_grad(training.loss, has_aux=True)
        (loss, (state, metrics)), grads = grad_fn(params, state, batch, jax.random.fold_in(key, step))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        metrics = dict(metrics, loss=loss, grad_norm=optax.global_norm(grads))
        return (params, state, opt_state), metrics

    return jax.jit(step_fn, donate_argnums=0)


def train_codec(
    config: config_dict.ConfigDict, data: str, out: str, heldout: str | None = None, command: str = ""
) -> dict:
    """Trains the codec of `config` on the media under `data` and writes it to `out`.

    Args:
      config: see configs/tokenizers/.
      data: a directory with a manifest.jsonl.
      out: receives config.json, weights.safetensors, metrics.json and train_log.jsonl.
      heldout: another such directory for the final figures; by default the last tenth of `data`.
      command: what the user typed, for the record.

    Returns:
      The contents of metrics.json.

    Raises:
      UserError: no usable data, or a loss that is not finite (names the step).
    """
    training = build_training(config)
    examples = training.read_examples(data)
    if heldout:
        heldout_examples = training.read_examples(heldout)
    else:
        kept = max(1, len(examples) // 10)
        examples, heldout_examples = examples[:-kept], examples[-kept:]
    if len(examples) == 0:
        raise cli.UserError(f"{data} holds too few examples to train on; generate or list more.")

    started = time.time()
    params, state, last = _optimize(config, training, examples, out)
    seconds = time.time() - started
    training.to_codec(params, state).save_pretrained(out)
    metrics = {
        "command": command,
        "steps": config.steps,
        "seconds": round(seconds, 1),
        "examples": len(examples),
        "parameters": sum(int(p.size) for p in jax.tree.leaves(params)),
        "train": last,
        "heldout": {
            "examples": len(heldout_examples),
            **training.evaluate(load_codec(out), heldout_examples),
        },
    }
    with open(os.path.join(out, "metrics.json"), "w") as file:
        json.dump(metrics, file, indent=2)
        file.write("\n")
    return metrics


def _optimize(
    config: config_dict.ConfigDict, training: Training, examples: Examples, out: str
) -> tuple[PyTree, PyTree, dict]:
    """Runs all steps; returns `(params, state, the last logged metrics)`."""
    key = jax.random.key(config.seed)
    params, state = training.init(jax.random.fold_in(key, config.steps), examples)
    optimizer = make_optimizer(config)
    carry = (params, state, optimizer.init(params))
    step_fn = make_step(training, optimizer)
    os.makedirs(out, exist_ok=True)
    logged = {}
    with (
        open(os.path.join(out, "train_log.jsonl"), "w") as log,
        tqdm(
            range(config.steps), desc=f"train {config.codec.modality} codec", unit="step", mininterval=1
        ) as progress,
    ):
        for step in progress:
            # The batch is a function of (seed, step), so that a run is repeatable whatever ran before it.
            batch = training.sample_batch(examples, np.random.default_rng((config.seed, step)))
            carry, metrics = step_fn(carry, batch, key, np.int32(step))
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
            if (step + 1) % config.save_every == 0:
                training.to_codec(*carry[:2]).save_pretrained(out)
    return carry[0], carry[1], logged


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
