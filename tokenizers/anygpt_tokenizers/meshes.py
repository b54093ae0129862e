"""Where a codec runs: on one device, or with its batches split over a mesh."""

from typing import Self

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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

    def on_mesh(self, mesh: Mesh, axis: str = "data") -> Self:
        """From now on runs with batches split over one axis of `mesh` and the weights on all its devices."""
        self.mesh, self._axis = automatic(mesh), axis
        self.__dict__.pop("weights", None)
        return self

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
