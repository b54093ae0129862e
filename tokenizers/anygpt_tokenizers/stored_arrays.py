"""Safetensors files of any size: written array by array, read as memory maps, bfloat16 included."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from anygpt_tokenizers.cli import UserError

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # bytes; what JAX asks of memory that it uses without a copy
MAX_HEADER = 100_000_000  # bytes, as the reference implementation


def write_arrays(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, array_of: Callable[[str], np.ndarray]
) -> None:
    """Writes the arrays named in `shapes`, asking `array_of(name)` for one at a time."""
    dtype, header, end = np.dtype(dtype), {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = np.asarray(array_of(name))
            if array.shape != tuple(shape):
                raise ValueError(f"{name} has the shape {array.shape} and was announced as {shape}")
            file.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name, read from the disk when they are used; they can't be written.

    UserError: there is no such file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        header, start = _read_header(path)
        return {name: _mapped(path, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); copy it again.") from error


def _read_header(path: Path) -> tuple[dict, int]:
    """(entries by name, where the data begin)."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(MAX_HEADER, path.stat().st_size - 8):
            raise ValueError("its header is impossible")
        return json.loads(file.read(size)), 8 + size


def _mapped(path: Path, start: int, entry: dict) -> np.ndarray:
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if last - first != math.prod(shape) * dtype.itemsize or not 0 <= first <= last:
        raise ValueError("its header contradicts itself")
    if start + last > path.stat().st_size:
        raise ValueError("it ends too early")
    if first == last:
        return np.zeros(shape, dtype)
    return np.memmap(path, np.uint8, "r", start + first, last - first).view(dtype).reshape(shape)
