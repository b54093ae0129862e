"""Where a codec runs: on one device, or with its batches split over a mesh."""

import math
from typing import Self

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from anygpt_tokenizers.cli import UserError


def automatic(mesh: Mesh) -> Mesh:
    """The mesh with axes that the compiler splits arrays over by itself."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


class OnMesh:
    """What codecs whose batches one axis of a mesh can split have in common.

    Such a class keeps its parameters on the devices as the cached property `weights`.

    Attributes:
      mesh: where it runs, or None for one device; set by `on_mesh`.
    """

    mesh: Mesh | None = None
    _axis = ""
    _made_for_mesh: tuple[str, ...] = ("weights",)  # cached properties that another mesh makes void

    def on_mesh(self, mesh: Mesh, axis: str = "data") -> Self:
        """From now on runs with batches split over one axis of `mesh` and the weights on all its devices.

        UserError if the mesh has no such axis.
        """
        if axis not in mesh.axis_names:
            raise UserError(f"The mesh has the axes {mesh.axis_names}, not {axis!r}.")
        self.mesh, self._axis = automatic(mesh), axis
        self._forget_placed()
        return self

    def _forget_placed(self) -> None:
        for name in self._made_for_mesh:
            self.__dict__.pop(name, None)

    @property
    def batch_devices(self) -> int:
        """How many parts a batch is split into."""
        return self.mesh.shape[self._axis] if self.mesh else 1

    def place(self, array: np.ndarray) -> jax.Array:
        """A host array with the batch in front, on the devices."""
        return jax.device_put(array, self.sharding(self._axis))

    def sharding(self, *axes: str | tuple[str, ...] | None) -> NamedSharding | None:
        """Of an array whose dimensions are split over mesh axes; None without a mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*axes)) if self.mesh else None


class OnDividedMesh(OnMesh):
    """The same for large codecs: two axes split their batches, and one of them their large matrices, too."""

    _axes: tuple[str, ...] = ()
    _weight_axis: str | None = None

    def on_mesh(self, mesh: Mesh, axis: str = "data", weight_axis: str | None = "fsdp") -> Self:
        """From now on runs with batches split over `mesh`.

        Batches are split over those of the two axes that the mesh has. The weights lie on all devices, except
        that the large matrices are split over `weight_axis` if there is one, and gathered for use.
        UserError if the mesh has neither axis.
        """
        wanted = dict.fromkeys((axis, weight_axis))
        axes = tuple(name for name in wanted if name in mesh.axis_names)
        if not axes:
            raise UserError(f"The mesh has the axes {mesh.axis_names}, neither {axis!r} nor {weight_axis!r}.")
        self.mesh, self._axes = automatic(mesh), axes
        self._weight_axis = weight_axis if weight_axis in axes else None
        self._forget_placed()
        return self

    @property
    def batch_devices(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self._axes) if self.mesh else 1

    def place(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, self.sharding(self._axes))

    def kernel_sharding(self, shape: tuple[int, ...]) -> NamedSharding | None:
        """Of a matrix, or of a convolution's: outputs split over `weight_axis` if it divides them."""
        if not self._weight_axis or shape[-1] % self.mesh.shape[self._weight_axis]:
            return self.sharding()
        return self.sharding(*(None,) * (len(shape) - 1), self._weight_axis)

    def gathered(self, params: dict) -> dict:
        """Inside a program: split matrices whole again on every device. Left to itself the partitioner splits
        activations by channels instead, at the price of whole batches on every device in between.
        """
        if not self._weight_axis:
            return params
        whole = self.sharding()
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), params)
