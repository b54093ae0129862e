"""Checkpoints of the project's own layout, written and read one slice of a parameter at a time.

Orbax makes the checkpoint with every array empty (nothing is stored for zeros), cut in chunks of one layer;
TensorStore, in whose format Orbax keeps arrays, then fills or reads slices. So no array is ever in memory as
a whole.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from anygpt_tokenizers.cli import UserError
from flax import traverse_util

from anygpt_jax import checkpoint, storage
from anygpt_jax.convert.layout import parameter_shapes
from anygpt_jax.model.config import DecoderConfig

# Small enough that a pod's hosts, which each read their part of the embed axis, read little in vain.
_CHUNK_BYTES = 8 * 2**20


def create_empty(workdir: str, config: DecoderConfig, meta: Mapping[str, Any]) -> None:
    """A checkpoint of step 0 with the parameters of `config`, all zero, and nothing for the optimizer."""
    dtype = jax.numpy.dtype(config.param_dtype)
    shapes = parameter_shapes(config)
    zeros = {path: np.broadcast_to(np.zeros((), dtype), shape) for path, shape in shapes.items()}
    # One chunk never holds two layers; stacked parameters and tables alike are cut along axis 0.
    cuts = {
        path: ocp.SaveArgs(
            chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if path.startswith("layers/") else ()
        )
        for path in shapes
    }
    # The handler would copy the arrays, which here are one zero repeated.
    handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, handler))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns that there is no jax.Array
    try:
        manager = ocp.CheckpointManager(
            os.path.join(os.path.abspath(workdir), checkpoint.CHECKPOINTS),
            item_handlers={
                "params": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        params = ocp.args.PyTreeSave(_tree(zeros), save_args=_tree(cuts))
        record = {**meta, "step": 0, "versions": checkpoint.package_versions()}
        manager.save(0, args=ocp.args.Composite(params=params, meta=ocp.args.JsonSave(record)))
        manager.close()
    finally:
        logging.set_verbosity(verbosity)


def _tree(flat: Mapping[str, Any]) -> Any:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


class ParameterStore:
    """The parameters of one checkpoint as arrays that are indexed on disk: `store["layers/…"][layer]`."""

    def __init__(self, workdir: str, step: int):
        """UserError if the step's parameters are not in the format that Orbax writes since 0.5 (OCDBT)."""
        self._directory = storage.locate(workdir) / checkpoint.CHECKPOINTS / str(step) / "params"
        try:
            self._zarr3 = json.loads(storage.read_text(self._directory / "_METADATA")).get("use_zarr3", False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._directory} has no readable parameters.") from error

    def __getitem__(self, path: str) -> ts.TensorStore:
        """The array of a path such as "layers/mlp/up/kernel"; it may be read and written in slices."""
        spec = {
            "driver": "zarr3" if self._zarr3 else "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": f"{'' if storage.in_bucket(self._directory) else 'file://'}{self._directory}/",
                "path": path.replace("/", ".") + "/",
            },
            "recheck_cached_data": False,
        }
        try:
            return ts.open(spec, open=True).result()
        except ValueError as error:
            raise UserError(f"{self._directory} has no parameter {path}.") from error
