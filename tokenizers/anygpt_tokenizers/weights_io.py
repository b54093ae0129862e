"""Reading and writing weights array by array: gigabytes need no more memory than their largest array."""

import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from anygpt_tokenizers.cli import UserError

# Names of safetensors' format -> numpy's.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class Entry(NamedTuple):
    """An array to be written: its name and shape, and what makes it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


class Weights:
    """The arrays of one checkpoint file, safetensors or torch's (read with `weights_only=True`).

    Attributes:
      place: the file's path, for messages.
      shapes: name -> shape of every array.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        self.place = os.fspath(path)
        if not path.is_file():
            raise UserError(f"There is no weights file {path}.")
        try:
            if path.suffix == ".safetensors":
                file = safetensors.safe_open(path, "numpy")
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                self._get = file.get_tensor
            else:
                self.shapes, self._get = _torch_arrays(path)
        except (
            safetensors.SafetensorError,
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            ValueError,
        ) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} can't be read as a file of plain arrays: {line}") from error

    def __getitem__(self, name: str) -> np.ndarray:
        """The array, in the precision that it is stored in."""
        return np.asarray(self._get(name))


def write_weights(path: str | os.PathLike, entries: Iterable[Entry], dtype: str = "float32") -> None:
    """Writes a safetensors file of arrays in one precision, making each array only when it is written."""
    stored = np.dtype(dtype)
    code = next(code for code, known in DTYPES.items() if known == stored)
    entries, header, offset = sorted(entries), {}, 0
    for entry in entries:
        size = int(np.prod(entry.shape, dtype=np.int64)) * stored.itemsize
        header[entry.name] = {
            "dtype": code,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries:
            array = np.ascontiguousarray(entry.make(), stored)
            if array.shape != entry.shape:
                raise ValueError(f"{entry.name} has the shape {array.shape}, not {entry.shape}")
            file.write(array.data if stored != DTYPES["BF16"] else array.view(np.uint16).data)


def _torch_arrays(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"Reading {path} needs torch: pip install 'anygpt_jax[convert]'.") from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(hasattr(value, "numpy") for value in state.values()):
        raise UserError(f"{path} is not a state dict: it doesn't map names to arrays.")
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return shapes, lambda name: state[name].detach().float().numpy()
