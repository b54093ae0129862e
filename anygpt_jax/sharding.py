"""From logical axis names to devices: the mesh, the one table of rules, and shardings of whole trees."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from anygpt_tokenizers.cli import UserError
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from anygpt_jax.model import whole_heads
from anygpt_jax.model.config import DecoderConfig

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# (logical axis, mesh axis or axes). Parameters are divided over fsdp by their embed axis and over tensor by
# the axis that makes a block's two products need one reduction; activations over the batch and the same
# tensor axes.
# A logical axis that is not listed is not divided.
DEFAULT_RULES = (
    ("batch", BATCH_AXES),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_mlp", "tensor"),
)

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# For one TPU slice: parameters divided over data, too, and gathered in two steps, first within fsdp (why:
# model/gathering.py). Devices come host by host: in a 4x4x4 torus, data 4 are lines and fsdp 16 planes.
TWO_STEP_RULES: Rules = (
    *(("embed", BATCH_AXES) if name == "embed" else (name, axes) for name, axes in DEFAULT_RULES),
    ("embed_halfway", "data"),
)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh data × fsdp × tensor; one size may be -1, which takes the devices that are left.

    `sizes` may also have "slices": the TPU slices that the devices belong to, which only the data center's
    network joins. The data axis then counts slices first, so that no other axis crosses that network.

    UserError if the sizes do not multiply to the number of devices (all of them unless `devices` are given),
    if the slices do not divide the data axis, or if the devices belong to another number of slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        given = ", ".join(f"{axis} = {size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise UserError(f"config.mesh has {given}; sizes are at least 1, and one axis may be -1.")
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) == 1 and len(devices) % known == 0:
        shape = [len(devices) // known if size == -1 else size for size in shape]
    if int(np.prod(shape)) != len(devices):
        wanted = " × ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise UserError(
            f"The mesh {wanted} does not fit {len(devices)} device(s); set config.mesh so that the product "
            f"is {len(devices)} (one axis may be -1)."
        )
    by_slice = devices_by_slice(devices, sizes.get("slices", 1), shape[0])
    return Mesh(by_slice.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def devices_by_slice(devices: Sequence[jax.Device], slices: int, data: int) -> np.ndarray:
    """The devices, slice after slice; those that know no slice (not TPUs) are cut into equal runs."""

    def slice_of(device: jax.Device) -> int:
        return getattr(device, "slice_index", None) or 0

    found = {slice_of(device) for device in devices}
    if len(found) not in (1, slices):
        raise UserError(
            f"The devices belong to {len(found)} slices but config.mesh.slices = {slices}; set it to "
            f"{len(found)}."
        )
    if slices < 1 or data % slices:
        raise UserError(f"config.mesh.slices = {slices} does not divide config.mesh.data = {data}.")
    # Stable: within a slice the order stays, which is that of the hosts.
    return np.asarray(sorted(devices, key=slice_of))


def check_divisible(
    config: DecoderConfig, mesh: Mesh, batch_size: int, accumulation: int = 1, rules: Rules = DEFAULT_RULES
) -> None:
    """UserError naming the first size that the mesh does not divide: in training also heads, which could be
    whole on every device, but at the price of the memory and the time that the mesh is there to save."""
    if accumulation < 1:
        raise UserError(f"config.optimizer.accumulation = {accumulation}; it must be at least 1.")
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    embed = _embed_axes(rules)
    batch = mesh.shape["data"] * fsdp * accumulation
    checks = [
        ("data.batch_size", batch_size, "mesh.data × mesh.fsdp × optimizer.accumulation", batch),
        ("model.num_heads", config.num_heads, "mesh.tensor", tensor),
        ("model.num_kv_heads", config.num_kv_heads, "mesh.tensor", tensor),
        ("model.hidden_dim", config.hidden_dim, "mesh.tensor", tensor),
        ("the padded vocabulary", config.vocab_size, "mesh.tensor", tensor),
        (
            "model.embed_dim",
            config.embed_dim,
            " × ".join(f"mesh.{axis}" for axis in embed),
            int(np.prod([mesh.shape[axis] for axis in embed])),
        ),
    ]
    for name, size, divisor_name, divisor in checks:
        if size % divisor:
            raise UserError(
                f"{name} = {size} is not a multiple of {divisor_name} = {divisor}; change one of them."
            )


def check_slices(slices: int, rules: Rules) -> None:
    """UserError if rules divide parameters over an axis that crosses the network between slices."""
    if slices > 1 and divides_over_data(rules):
        raise UserError(
            f"config.rules divide parameters over data, which joins {slices} slices, so every layer would be "
            "gathered over the network between them; for several slices take sharding.DEFAULT_RULES."
        )


def divides_over_data(rules: Rules) -> bool:
    """Whether parameters are divided over the data axis, too (else each of its parts holds them all)."""
    return "data" in _embed_axes(rules)


def _embed_axes(rules: Rules) -> tuple[str, ...]:
    """The mesh axes that parameters are divided over by their embed axis."""
    axes = dict(rules).get("embed") or ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def check_local_rows(mesh: Mesh, batch_size: int) -> None:
    """UserError unless each process's devices hold the contiguous part of a batch that it reads."""
    part = batch_size // jax.process_count()
    first = jax.process_index() * part
    needed = batch_sharding(mesh).addressable_devices_indices_map((batch_size, 1)).values()
    rows = {row for index, _ in needed for row in range(*index.indices(batch_size))}
    if rows != set(range(first, first + part)):
        raise UserError(
            "config.mesh spreads one row of a batch over several hosts; make mesh.tensor divide the devices "
            "of one host, and mesh.data × mesh.fsdp a multiple of the number of hosts."
        )


@contextlib.contextmanager
def sharding_context(mesh: Mesh, rules: Rules):
    """Where a step is traced and run: the mesh and the rules that the model's constraints look up.

    Enter it around the step only: restoring a checkpoint inside an active mesh fails (orbax #3164).
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(rules)):
        yield


def param_shardings(boxed: Any, mesh: Mesh, rules: Rules) -> Any:
    """NamedShardings of parameters, from the logical axes that they are boxed with (`init_boxed_params`).

    Heads that the mesh's tensor axis does not divide are whole on every device (`whole_heads`), so that a
    model with few key/value heads loads on any mesh; training refuses such a mesh (`check_divisible`).
    """
    rules = tuple(rules)

    def place(spec: PartitionSpec, leaf: Any) -> NamedSharding:
        axes = whole_heads.fitting_axes(tuple(spec), leaf.shape, mesh.shape, rules)
        return NamedSharding(mesh, nn.logical_to_mesh_axes(axes, rules))

    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    return jax.tree.map(place, nn.get_partition_spec(boxed), nn.unbox(boxed), is_leaf=is_spec)


def like_params(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer state: a leaf that mirrors a parameter (same path ending, same shape) gets
    that parameter's, everything else is replicated."""
    by_path = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def find(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = by_path.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(find, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, L]: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices a batch is divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as global arrays on the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs that carry their shardings: what a checkpoint is restored against."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def describe(params: Any) -> str:
    """One line per parameter: path, shape, dtype, partition. For the log at start."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spec = ", ".join(str(axis) for axis in leaf.sharding.spec) or "replicated"
        lines.append(f"{'/'.join(_names(path)):40} {leaf.shape!s:22} {leaf.dtype!s:9} {spec}")
    return "\n".join(lines)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
