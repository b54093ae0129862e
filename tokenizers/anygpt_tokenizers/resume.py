"""What a stopped training run continues from, one safetensors file in the run's output directory, and what a
finished one leaves there: its record, with the settings by which it is known again.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import CONFIG_FILE

FILE = "resume.safetensors"
RECORD = "metrics.json"
LOG = "train_log.jsonl"
SETTINGS = "settings"  # the record's field


def save(out: str, settings: Mapping[str, Any], tree: Any, step: int, seconds: float) -> None:
    """Writes the arrays of `tree` after `step` steps; a file that is there is replaced all at once.

    `settings`: what makes the run what it is, by name; values that JSON knows.
    """
    arrays = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    meta = {"settings": json.dumps(settings), "progress": json.dumps({"step": step, "seconds": seconds})}
    partial = os.path.join(out, f".{FILE}.partial")
    safetensors.numpy.save_file(arrays, partial, meta)
    os.replace(partial, os.path.join(out, FILE))


def load(out: str, settings: Mapping[str, Any], tree: Any) -> tuple[Any, int, float]:
    """(the saved tree, steps done, seconds spent), or `tree`, 0 and 0 if nothing is saved.

    UserError if a run with another value of a setting was stopped there, or the file is damaged. A setting
    that was not known then counts as the same.
    """
    path = os.path.join(out, FILE)
    if not os.path.exists(path):
        return tree, 0, 0.0
    try:
        with safetensors.safe_open(path, "numpy") as file:
            meta = file.metadata()
            if other := _difference(json.loads(meta["settings"]), settings):
                raise UserError(
                    f"In {out} a run was stopped {other}; take that to continue it, another --out, or "
                    f"remove {path} to start over."
                )
            leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
            saved = [file.get_tensor(jax.tree_util.keystr(key)) for key, _ in leaves]
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to start over.") from error
    progress = json.loads(meta["progress"])
    return jax.tree.unflatten(structure, saved), progress["step"], progress["seconds"]


def finished(out: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the run that ended in `out`; None if there is one to start or to continue.

    UserError if that run had another value of a setting or is of a version that recorded none, or if what
    lies there is of no run at all.
    """
    made, path = os.path.join(out, CONFIG_FILE), os.path.join(out, RECORD)
    if os.path.exists(os.path.join(out, FILE)) or not os.path.exists(made):
        return None
    if not os.path.exists(path):
        if os.path.exists(os.path.join(out, LOG)):  # of a run that was stopped before its figures were there
            return None
        raise UserError(
            f"{made} is there already and of no training run; training would overwrite it and its weights, "
            f"so take another --out, or remove {out}."
        )
    try:
        with open(path, encoding="utf-8") as file:
            metrics = json.load(file)
        other = _difference(metrics[SETTINGS], settings)
    except (ValueError, KeyError, TypeError, AttributeError):
        metrics, other = None, None
    if metrics is None or other:
        which = f"a finished run {other}" if other else "a finished run"
        raise UserError(f"{out} holds {which}; take another --out, or remove {out} to train anew.")
    return metrics


def record(out: str, metrics: Mapping[str, Any]) -> None:
    """Writes the record of a run, all at once: the run has ended, and nothing of it is left to continue."""
    partial = os.path.join(out, f".{RECORD}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(metrics, file, indent=2)
        file.write("\n")
    os.replace(partial, os.path.join(out, RECORD))
    path = os.path.join(out, FILE)
    if os.path.exists(path):
        os.remove(path)


def _difference(was: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What differs, as "whose NAME was A, not B"; "" if no setting that both know does."""
    now = json.loads(json.dumps(settings))
    for name in sorted(was.keys() & now.keys()):
        if was[name] != now[name]:
            return f"whose {name} was {was[name]}, not {now[name]}"
    return ""
