"""What a stopped training run continues from: one safetensors file in the run's output directory."""

import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from anygpt_tokenizers.cli import UserError

FILE = "resume.safetensors"


def save(out: str, run: str, tree: Any, step: int, seconds: float) -> None:
    """Writes the arrays of `tree` after `step` steps; a file that is there is replaced all at once."""
    arrays = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    meta = {"run": _hash(run), "progress": json.dumps({"step": step, "seconds": seconds})}
    partial = os.path.join(out, f".{FILE}.partial")
    safetensors.numpy.save_file(arrays, partial, meta)
    os.replace(partial, os.path.join(out, FILE))


def load(out: str, run: str, tree: Any) -> tuple[Any, int, float]:
    """(the saved tree, steps done, seconds spent), or `tree`, 0 and 0 if nothing is saved.

    UserError if another run (other settings, other data) was stopped there, or the file is damaged.
    """
    path = os.path.join(out, FILE)
    if not os.path.exists(path):
        return tree, 0, 0.0
    try:
        with safetensors.safe_open(path, "numpy") as file:
            meta = file.metadata()
            if meta["run"] != _hash(run):
                raise UserError(
                    f"In {out} a run with other settings or data was stopped; take its settings to continue "
                    f"it, another --out, or remove {path} to start over."
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


def _hash(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()
