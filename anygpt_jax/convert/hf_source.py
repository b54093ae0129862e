"""A Hugging Face LLaMA directory: its config, and its tensors one at a time."""

import os
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
from anygpt_tokenizers.checkpoint_files import TORCH_ERRORS
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import SafetensorsFile

from anygpt_jax.convert.layout import IGNORED_SUFFIX, Tensor
from anygpt_jax.convert.tokens import read_json

# What the decoder does; a checkpoint that wants something else cannot be imported.
_REQUIRED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# DecoderConfig's sizes and what config.json calls them; none that can be trained is larger than the last.
_SIZES = {
    "num_real_rows": "vocab_size",
    "embed_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
_LARGEST = 1_000_000
_OUTPUT_TABLE, _INPUT_TABLE = "lm_head.weight", "model.embed_tokens.weight"


def model_fields(source: str) -> dict[str, Any]:
    """DecoderConfig fields of a directory's config.json, with `num_real_rows` for the vocabulary.

    UserError where a field is missing or no number, or where the architecture is not LLaMA-2's.
    """
    path = os.path.join(source, "config.json")
    config = read_json(path)
    for name, wanted in _REQUIRED.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"{path}: {name} is {config[name]!r}; only {wanted!r} can be imported.")
    fields = {ours: _size(path, config, theirs) for ours, theirs in _SIZES.items()}
    heads = fields["num_heads"]
    defaults = {"num_key_value_heads": heads, "head_dim": fields["embed_dim"] // heads}
    given = defaults | {name: config[name] for name in defaults if config.get(name) is not None}
    kv_heads, head_dim = _size(path, given, "num_key_value_heads"), _size(path, given, "head_dim")
    if heads % kv_heads:
        raise UserError(
            f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}."
        )
    if head_dim % 2:
        raise UserError(f"{path}: head_dim is {head_dim}; rotary positions need an even number.")
    return fields | {
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "rope_theta": _rope_theta(path, config),
        "norm_eps": _positive(path, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
    }


def _rope_theta(path: str, config: dict[str, Any]) -> float:
    """The one base of the rotary angles that a config.json names, by default 10,000.

    It stands at the top or, of transformers 5, in rope_parameters. UserError where two are given that differ,
    or where the angles are to be scaled.
    """
    thetas = {"rope_theta": config.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {name} is {rope!r}; it must be an object or null.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UserError(f"{path}: rotary scaling {kind!r} cannot be imported; LLaMA-2 has none.")
        thetas[f"{name}.rope_theta"] = rope.get("rope_theta")
    given = {name: _positive(path, name, theta) for name, theta in thetas.items() if theta is not None}
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name} = {theta}" for name, theta in given.items())
        raise UserError(f"{path} says {said}; keep the one that the model was trained with.")
    return next(iter(given.values()), 10_000.0)


def _size(path: str, config: dict[str, Any], name: str) -> int:
    if name not in config:
        raise UserError(f"{path} has no {name}; it is no LLaMA config.")
    value = config[name]
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise UserError(f"{path}: {name} is {value!r}; it must be a whole number from 1 to {_LARGEST}.")
    return value


def _positive(path: str, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise UserError(f"{path}: {name} is {value!r}; it must be a positive number.")
    return float(value)


class Weights:
    """The tensors of a directory's model.safetensors or pytorch_model.bin, in one file or with an index.

    Only one torch file is open at a time; safetensors are read tensor by tensor.
    """

    def __init__(self, source: str):
        self._source = source
        self._safetensors: dict[str, SafetensorsFile] = {}
        self._torch: tuple[str, dict[str, Any]] | None = None
        self._file_of = self._index()
        self._tied = read_json(os.path.join(source, "config.json")).get("tie_word_embeddings", False)

    def _index(self) -> dict[str, str]:
        """Tensor → file, every file of the index checked to be there."""
        for single, index in [
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ]:
            path = os.path.join(self._source, index)
            if os.path.exists(path):
                files = read_json(path).get("weight_map")
                if not isinstance(files, dict):
                    raise UserError(f"{path} has no weight_map.")
                for name, file in files.items():
                    if not isinstance(file, str):
                        raise UserError(f"{path}: the weight_map gives {name} no file's name.")
                    if not os.path.isfile(os.path.join(self._source, file)):
                        raise UserError(f"{self._source}: {file}, which holds {name}, is missing.")
                return files
            if os.path.exists(os.path.join(self._source, single)):
                return dict.fromkeys(self._names_in(single), single)
        raise UserError(
            f"{self._source} holds no weights: neither model.safetensors nor pytorch_model.bin nor an index."
        )

    def _names_in(self, file: str) -> list[str]:
        if file.endswith(".safetensors"):
            return list(self._open_safetensors(file).shapes)
        return list(self._open_torch(file, "all tensors"))

    def check(self, tensors: list[Tensor]) -> None:
        """UserError naming the first of `tensors` that is missing or misshapen, or one that is too many.

        Of a tied model that has an output table nevertheless, the two tables must be equal.
        """
        wanted = {tensor.name: tensor for tensor in tensors}
        for name in sorted(self._file_of):
            if name not in wanted and not name.endswith(IGNORED_SUFFIX):
                raise UserError(f"{self._source}: tensor {name} has no place in a LLaMA-2 decoder.")
        # File by file, so that each torch file is opened once.
        for tensor in sorted(tensors, key=lambda tensor: self._file_of.get(tensor.name, "")):
            shape = self._shape(tensor.name)
            if shape != tensor.shape:
                raise UserError(
                    f"{self._source}: tensor {tensor.name} has shape {list(shape)}; its config.json and "
                    f"tokenizer want {list(tensor.shape)}."
                )
        if self._tied and _OUTPUT_TABLE in self._file_of:
            tables = [self._read_stored(name) for name in (_INPUT_TABLE, _OUTPUT_TABLE)]
            if not np.array_equal(*tables):
                raise UserError(
                    f"{self._source}: config.json says tie_word_embeddings, but {_OUTPUT_TABLE} is not "
                    f"{_INPUT_TABLE}; remove it, or set tie_word_embeddings to false if it is wanted."
                )

    def in_file_order(self, tensors: list[Tensor]) -> list[Tensor]:
        """`tensors` so that each file is read in one go."""
        return sorted(tensors, key=lambda tensor: self._file_of[self._stored_name(tensor.name)])

    def _stored_name(self, name: str) -> str:
        """The tied output table is the input table."""
        return _INPUT_TABLE if self._tied and name == _OUTPUT_TABLE else name

    def _locate(self, name: str) -> str:
        """The file that holds a stored tensor."""
        if name not in self._file_of:
            raise UserError(f"{self._source}: tensor {name} is missing.")
        file = self._file_of[name]
        held = (
            self._open_safetensors(file).shapes
            if file.endswith(".safetensors")
            else self._open_torch(file, name)
        )
        if name not in held:
            raise UserError(f"{self._source}: the index says that {file} holds {name}, and it does not.")
        return file

    def _shape(self, name: str) -> tuple[int, ...]:
        name = self._stored_name(name)
        file = self._locate(name)
        if file.endswith(".safetensors"):
            return self._open_safetensors(file).shapes[name]
        return tuple(self._open_torch(file, name)[name].shape)

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32, float16 or bfloat16; UserError if a value is not finite."""
        return self._read_stored(self._stored_name(name))

    def _read_stored(self, name: str) -> np.ndarray:
        file = self._locate(name)
        if file.endswith(".safetensors"):
            value = self._open_safetensors(file).read(name)
        else:
            value = _to_numpy(self._open_torch(file, name)[name], name, file)
        if not np.isfinite(value.sum(dtype=np.float64)):
            raise UserError(f"{self._source}/{file}: tensor {name} holds values that are not finite.")
        return value

    def _open_safetensors(self, file: str) -> SafetensorsFile:
        if file not in self._safetensors:
            self._safetensors[file] = SafetensorsFile(os.path.join(self._source, file))
        return self._safetensors[file]

    def _open_torch(self, file: str, wanted: str) -> dict[str, Any]:
        """The tensors of a torch file; `wanted` is what the message names.

        They are mapped and not read, unless the file is older than torch 1.6, which had no zip archives.
        """
        if self._torch and self._torch[0] == file:
            return self._torch[1]
        self._torch = None
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"{file} is a torch file and torch is not installed: pip install 'anygpt_jax[convert]'."
            ) from error
        path = os.path.join(self._source, file)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except (*TORCH_ERRORS, OSError) as error:
            raise UserError(
                f"{path}, which should hold {wanted}, is cut off, damaged or no plain torch checkpoint."
            ) from error
        if not isinstance(tensors, dict) or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
            raise UserError(f"{path}, which should hold {wanted}, is no dictionary of tensors.")
        self._torch = (file, tensors)
        return tensors


def _to_numpy(tensor: Any, name: str, file: str) -> np.ndarray:
    import torch

    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype not in (torch.float32, torch.float16):
        raise UserError(f"{file}: tensor {name} is stored as {tensor.dtype}; only floats can be read.")
    return tensor.numpy()
