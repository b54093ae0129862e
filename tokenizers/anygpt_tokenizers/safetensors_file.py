"""Safetensors files read and written one tensor at a time.

The format (https://github.com/huggingface/safetensors): the header's length as a little-endian uint64, the
header as JSON {name: {dtype, shape, data_offsets}}, and the arrays' bytes. Read here and not by the package,
because a damaged file has to name its tensor, and because numpy there has no bfloat16.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from anygpt_tokenizers.cli import UserError

DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_OTHERS = {"F64": "f8", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_KNOWN = DTYPES | {name: np.dtype(code) for name, code in _OTHERS.items()}
_MAX_HEADER = 100_000_000  # the package's own limit
_ALIGNMENT = 64  # bytes; what JAX asks of memory that it uses without a copy


class SafetensorsFile:
    """A file's header, checked against its size; `read` loads one tensor, `map` leaves it on the disk.

    Attributes: `shapes`, name → shape.
    """

    def __init__(self, path: str | os.PathLike):
        """Raises a UserError that names the first tensor that cannot be whole."""
        self._path = os.fspath(path)
        try:
            with open(self._path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                raw = file.read(length) if 0 < length <= _MAX_HEADER else b""
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror}.") from error
        try:
            header = json.loads(raw.decode("utf-8"))
            header.pop("__metadata__", None)
            items = header.items()
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self._path} is no safetensors file: its header is not readable.") from error
        self._first = 8 + length
        self._entries = entries = {name: self._entry(name, entry) for name, entry in items}
        for name, entry in entries.items():
            self._check(name, *entry, size)
        self._check_apart()
        self.shapes = {name: shape for name, (_, shape, _, _) in entries.items()}

    def _entry(self, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
        """Dtype, shape, first byte and end of a tensor, as its header says."""
        try:
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._path}: the header's entry of tensor {name} is malformed.") from error
        if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
            raise UserError(f"{self._path}: the header's entry of tensor {name} is malformed.")
        return dtype, shape, start, stop

    def _check_apart(self) -> None:
        """No byte belongs to two tensors."""
        end = 0
        for start, stop, name in sorted(
            (start, stop, name) for name, (*_, start, stop) in self._entries.items()
        ):
            if start < end:
                raise UserError(f"{self._path}: tensor {name} lies within another; get the file again.")
            end = stop

    def _check(self, name: str, dtype: str, shape: tuple[int, ...], start: int, stop: int, size: int) -> None:
        if dtype not in _KNOWN:
            raise UserError(
                f"{self._path}: tensor {name} is stored as {dtype}; only {', '.join(_KNOWN)} can be read."
            )
        needed = math.prod(shape) * _KNOWN[dtype].itemsize
        if stop - start != needed:
            raise UserError(
                f"{self._path}: tensor {name} has {stop - start} bytes, but {dtype} of shape {list(shape)} "
                f"needs {needed}; get the file again."
            )
        if self._first + stop > size:
            raise UserError(
                f"{self._path} is cut off inside tensor {name} ({size} bytes instead of at least "
                f"{self._first + stop}); get the file again."
            )

    def read(self, name: str) -> np.ndarray:
        """A tensor of floats, in memory of its own."""
        dtype, shape, start, stop = self._entries[name]
        if dtype not in DTYPES:
            raise UserError(
                f"{self._path}: tensor {name} is stored as {dtype}; only {', '.join(DTYPES)} can be used."
            )
        count = (stop - start) // DTYPES[dtype].itemsize
        return np.fromfile(self._path, DTYPES[dtype], count, offset=self._first + start).reshape(shape)

    def map(self, name: str) -> np.ndarray:
        """A tensor of any kind, read from the disk when it is used; it can't be written."""
        dtype, shape, start, stop = self._entries[name]
        if start == stop:
            return np.zeros(shape, _KNOWN[dtype])
        raw = np.memmap(self._path, np.uint8, "r", self._first + start, stop - start)
        return raw.view(_KNOWN[dtype]).reshape(shape)


class SafetensorsWriter:
    """Writes a file whose tensors are known by name, shape and dtype, in any order."""

    def __init__(self, path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype):
        """`dtype`: of all tensors, one of DTYPES."""
        self._dtype = np.dtype(dtype)
        label = next(label for label, known in DTYPES.items() if known == self._dtype)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._offsets, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + math.prod(shape) * self._dtype.itemsize
            header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [start, end]}
            self._offsets[name] = start
        text = json.dumps(header).encode("utf-8")
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        self._first = 8 + len(text)
        self._shapes = dict(shapes)
        self._file = open(path, "wb")  # noqa: SIM115 – open until close()
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._first + end)

    def write(self, name: str, value: np.ndarray) -> None:
        """Puts a tensor of the announced shape in its place; any float dtype, rounded to the file's."""
        if value.shape != tuple(self._shapes[name]):
            raise ValueError(f"{name} has shape {value.shape} instead of {self._shapes[name]}")
        self._file.seek(self._first + self._offsets[name])
        self._file.write(np.ascontiguousarray(value, self._dtype).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Everything is on disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def write_arrays(
    path: str | os.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    array_of: Callable[[str], np.ndarray],
) -> None:
    """Writes the arrays named in `shapes`, asking `array_of(name)` for one at a time."""
    writer = SafetensorsWriter(path, shapes, dtype)
    for name in shapes:
        writer.write(name, np.asarray(array_of(name)))
    writer.close()


def map_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a file by name, each read from the disk when it is used."""
    file = SafetensorsFile(path)
    return {name: file.map(name) for name in file.shapes}
