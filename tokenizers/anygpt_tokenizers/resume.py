"""What a stopped training run continues from: one safetensors file in the run's output directory."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from anygpt_tokenizers.cli import UserError

FILE = "resume.safetensors"


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
            was, now = json.loads(meta["settings"]), json.loads(json.dumps(settings))
            for name in sorted(was.keys() & now.keys()):
                if was[name] != now[name]:
                    raise UserError(
                        f"In {out} a run was stopped whose {name} was {was[name]}, not {now[name]}; take "
                        f"that to continue it, another --out, or remove {path} to start over."
                    )
            leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
            saved = [file.get_tensor(jax.tree_util.keystr(key)) for key, _ in leaves]
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to start over.") from error
    progress = json.loads(meta["progress"])
    return jax.tree.unflatten(structure, saved), progress["step"], progress["seconds"]


def forget(out: str) -> None:
    """Removes the file: the run has ended."""
    path = os.path.join(out, FILE)
    if os.path.exists(path):
        os.remove(path)
