"""Weights that are gathered, and their gradients that are divided again, in two steps."""

import flax.linen as nn
import jax

from anygpt_jax.model import whole_heads


def divided_halfway(weights: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Weights with logical `axes`, constrained to how they are divided between two gathers.

    The rules ask for two by naming `embed_halfway`: those of the mesh axes of `embed` that divide it after
    the first. Without such a rule nothing is constrained. Of a gradient it is the other way round.

    A TPU's torus is why: XLA gathers and scatters sums within its lines and planes, but on a whole
    three-dimensional one it sums arrays of zeros instead of gathering, and sums whole gradients on every
    device instead of parts (docs/performance.md).
    """
    if jax.sharding.get_abstract_mesh().empty or not nn.logical_to_mesh_axes(("embed_halfway",))[0]:
        return weights
    halfway = tuple("embed_halfway" if axis == "embed" else axis for axis in axes)
    return whole_heads.constrain(weights, halfway)
