"""What every importer does with files: reads a published checkpoint's arrays, writes a directory all at once.

Nothing is unpickled freely: a file is safetensors, or goes through torch's `weights_only=True`.
"""

import os
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import map_arrays

State = dict[str, np.ndarray]

# What `torch.load` raises on a file that is cut off, damaged or of something else, by where it is so.
TORCH_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)


def read_state(path: Path) -> State:
    """A checkpoint's arrays by key, from safetensors or torch's format (a trainer's: its "generator")."""
    if path.suffix != ".safetensors":
        return {key: to_numpy(value, path, key) for key, value in read_torch(path).items()}
    _check_there(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_torch(path: Path) -> dict:
    """The tensors of a file of torch's format by key; if it can be, each is read when it is first used."""
    state = _torch_dict(path)
    if not all(isinstance(key, str) and hasattr(value, "numpy") for key, value in state.items()):
        raise _no_state_dict(path)
    return state


def _torch_dict(path: Path) -> dict:
    """What a file of torch's format maps names to, tensors and others, such as a trainer's "epoch"."""
    _check_there(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"Reading {path} needs torch: pip install 'anygpt_jax[convert]'.") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except TORCH_ERRORS as error:
        raise _unreadable(path, error) from error
    state = state["generator"] if isinstance(state, dict) and "generator" in state else state
    if not isinstance(state, dict) or not any(hasattr(value, "numpy") for value in state.values()):
        raise _no_state_dict(path)
    return state


def _no_state_dict(path: Path) -> UserError:
    return UserError(f"{path} is not a state dict: it doesn't map names to arrays.")


def read_checkpoint(path: Path) -> dict:
    """The tensors of a safetensors or torch file by key, memory maps or torch's; see `to_numpy`."""
    return map_arrays(path) if path.suffix == ".safetensors" else dict(read_torch(path))


def read_tensors(path: Path) -> tuple[dict, list[str]]:
    """(what `read_checkpoint` gives, the names in the file that stand for no tensors)."""
    state = map_arrays(path) if path.suffix == ".safetensors" else _torch_dict(path)
    tensors = {key: value for key, value in state.items() if hasattr(value, "shape") and isinstance(key, str)}
    return tensors, [str(key) for key in state if key not in tensors]


def to_numpy(tensor: Any, place: str | os.PathLike, key: str) -> np.ndarray:
    """A tensor of `read_checkpoint` as an array, torch's as float32; UserError names one that can't be."""
    if isinstance(tensor, np.ndarray):
        return tensor
    try:
        return tensor.detach().float().numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, or of no numbers at all ("meta")
        raise UserError(
            f"{os.fspath(place)}: {key!r} is no plain array ({_first_line(error)}); save it as one."
        ) from error


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array as float32; a number too large for it becomes infinite, as `finite` then says."""
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def finite(array: np.ndarray, place: str | os.PathLike, key: str) -> np.ndarray:
    """The array itself; UserError names the tensor of a file that has values which are no finite numbers."""
    if not np.isfinite(array).all():
        raise UserError(f"{os.fspath(place)}: {key!r} has values that are no finite numbers.")
    return array


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")


def _unreadable(path: Path, error: Exception) -> UserError:
    what = f"{path} can't be read as a checkpoint of plain arrays"
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to unpickle it all the same
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            return UserError(
                f"{what}: it is damaged, no torch file, or holds Python objects other than arrays."
            )
        return UserError(
            f"{what}: it holds Python objects other than arrays ({found[1]}), which are never unpickled; "
            "save the state dict alone."
        )
    return UserError(f"{what}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_free(out: Path) -> None:
    """UserError unless `out` can be written as a new directory: it doesn't exist, or is an empty one."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; name a new directory.")


def write_new_directory(out: Path, write: Callable[[Path], None]) -> None:
    """Has `write` fill a directory and names it `out` then: `out` is there complete, or not at all."""
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(partial)
        partial.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
