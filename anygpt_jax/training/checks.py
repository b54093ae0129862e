"""What a config may say, and what of it may change when a run goes on; each mistake is one sentence."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from anygpt_tokenizers import cli
from anygpt_tokenizers.cli import UserError
from flax import traverse_util

from anygpt_jax import distributed
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.training import defaults

# Counts that have a least value, and the numbers of the optimizer and of the loss by what they have to be.
_LEAST = {
    "steps": 1,
    "log_every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "checkpoint.keep_every": 0,
    "checkpoint.minutes": 0,
    "eval.every": 0,
    "eval.batches": 1,
    "data.prefetch": 0,
    "optimizer.learning_rate": 0,
    "optimizer.muon_learning_rate": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip": 0,
    "prompt_loss_weight": 0,
    "z_loss": 0,
}
_FRACTIONS = {"optimizer.warmup": "of config.steps", "optimizer.final": "of the highest learning rate"}
_DECAYS = ("optimizer.b1", "optimizer.b2")
_MULTIPLES = ("optimizer.skip_spikes", "optimizer.skip_loss_spikes")
_WEIGHTS = ("loss_weights", "direction_weights")


def check_fields(config: Any, program: str = "anygpt_jax.train") -> None:
    """UserError if the config has not all the fields of training/defaults.py."""
    cli.check_fields(config, defaults.get_config(), program)


def check_numbers(config: Any) -> None:
    """UserError names a number that makes no training, before anything is written."""
    fields = traverse_util.flatten_dict(config.to_dict(), sep=".")

    def refuse(name: str, wanted: str) -> None:
        raise UserError(f"config.{name} = {fields[name]}; it must be {wanted}.")

    least = _LEAST | {name: 0 for name in fields if name.partition(".")[0] in _WEIGHTS}
    for name, value in least.items():
        if not value <= fields[name] < math.inf:  # nor may it be nan
            refuse(name, f"at least {value}" + (" and finite" if fields[name] == math.inf else ""))
    for name, of_what in _FRACTIONS.items():
        if not 0 <= fields[name] <= 1:
            refuse(name, f"a fraction {of_what}, from 0 to 1")
    for name in _DECAYS:
        if not 0 <= fields[name] < 1:
            refuse(name, "at least 0 and below 1")
    for name in _MULTIPLES:
        if fields[name] and not fields[name] > 1:
            refuse(name, "above 1, a multiple of the running mean, or 0 to skip nothing")
    if not 0 < fields["optimizer.eps"] < math.inf:
        refuse("optimizer.eps", "above 0")
    if fields["checkpoint.keep_every"] % fields["checkpoint.every"]:
        raise UserError(
            f"config.checkpoint.keep_every = {fields['checkpoint.keep_every']} is no multiple of "
            f"config.checkpoint.every = {fields['checkpoint.every']}, so not all of its multiples would be "
            "saved; choose one that is."
        )


def check_model(model: DecoderConfig, saved: Mapping[str, Any], workdir: str | os.PathLike) -> None:
    """UserError if the run that goes on in `workdir` is of another model; `saved`: its config's fields."""
    for name, old, new in _differences(model, saved):
        raise UserError(
            f"The checkpoint in {workdir} was made with model.{name} = {old} and the config says {new}; go "
            f"on with --config.model.{name}={old}, or give another --workdir."
        )


def check_start(model: DecoderConfig, saved: Mapping[str, Any], workdir: str | os.PathLike) -> None:
    """UserError if the parameters in `workdir`, which a new run starts from, are of another model."""
    for name, old, new in _differences(model, saved):
        other = "start from another checkpoint"
        if name == "param_dtype" and new != "float16":  # which convert does not write
            other = (
                f"make one of {new} with python -m anygpt_jax.convert grow --src={workdir} "
                f"--vocabulary={workdir} --param_dtype={new} --out=DIR"
            )
        raise UserError(
            f"The parameters in config.init_from = {workdir} have model.{name} = {old} and the config says "
            f"{new}; set --config.model.{name}={old}, or {other}."
        )


def _differences(model: DecoderConfig, saved: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(field, the saved value, the model's) of each difference that parameters cannot bear."""
    # Only what shapes the parameters has to agree; precision, tiles and recomputation may change.
    free = ("dtype", "remat_policy", "scan_unroll", "attention_blocks", "attention", "loss_tile")
    for name, value in model.to_dict().items():
        if name not in free and value != saved[name]:
            yield name, saved[name], value


def check_continues(
    meta: Mapping[str, Any], config: Any, contents: Mapping[str, Any], workdir: str | os.PathLike
) -> None:
    """UserError if the optimizer is another one; says if the rows to come are not those that were left.

    Args:
      meta: what the checkpoint in `workdir` says about itself. contents: PackedData.contents of today's data.
    """
    saved = meta["config"]
    was, name = saved["optimizer"]["name"], config.optimizer.name
    if was != name:
        raise UserError(
            f"The checkpoint in {workdir} has the state of optimizer.name = {was!r} and the config says "
            f"{name!r}; use the old value, or a new --workdir with --config.init_from={workdir}."
        )
    now, rows = plain(config), "some rows will be read twice in this epoch, others not at all"
    said = [
        f"config.{field} = {new}, but the run in {workdir} had {old} until now: {rows}."
        for field, old, new in [
            ("seed", saved["seed"], now["seed"]),
            ("data.batch_size", saved["data"]["batch_size"], now["data"]["batch_size"]),
            ("data.mixture", saved["data"]["mixture"], now["data"]["mixture"]),
        ]
        if old != new
    ]
    if meta.get("data", contents) != contents:  # older checkpoints do not say
        said.append(
            f"The data in {config.data.dir} have other rows than when the run in {workdir} was saved: {rows}."
        )
    if distributed.is_primary():
        for sentence in said:
            print(sentence, file=sys.stderr)


def plain(config: Any) -> dict[str, Any]:
    """The config as JSON values, for the checkpoint's record."""
    return json.loads(json.dumps(config.to_dict(), default=str))
