"""Heads on a mesh that their number does not divide into: every device then has all of them."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

_HEADS = ("heads", "kv_heads", "act_heads", "act_kv_heads")


def fitting_axes(
    axes: Sequence[str | None],
    shape: tuple[int, ...],
    mesh: Mapping[str, int],
    rules: Sequence | None = None,
) -> tuple[str | None, ...]:
    """The logical `axes` of an array of this `shape`, without those of heads that the mesh would cut.

    Two key/value heads on four devices are then whole on each, while query heads, the MLP and the vocabulary
    are divided. Other axes stay, an error where they do not fit: the vocabulary is padded to do so, and
    an MLP whole on every device would take the memory that the mesh was to save.

    Args:
      mesh: sizes of its axes. rules: by default those of the context.
    """

    def cut(axis: str | None, size: int) -> bool:
        if axis not in _HEADS:
            return False
        names = nn.logical_to_mesh_axes((axis,), rules)[0] or ()
        ways = np.prod([mesh[name] for name in ((names,) if isinstance(names, str) else names)], dtype=int)
        return size % ways != 0

    return tuple(None if cut(axis, size) else axis for axis, size in zip(axes, shape, strict=False))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """`nn.with_logical_constraint` for arrays that may have heads."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else nn.with_logical_constraint(x, fitting_axes(axes, x.shape, mesh.shape))
