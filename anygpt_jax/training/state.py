"""All that training carries from step to step, and how it is made and placed on a mesh."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from anygpt_jax import sharding
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import init_boxed_params, init_params


@flax.struct.dataclass
class MetricSums:
    """Sums since the last log line; part of the state so that a resumed run writes the same line.

    Attributes:
      objective: float32 [2], the weighted loss and the weights.
      modalities: float32 [M, 4], for text and each modality of the target: negative log likelihood, right
        first guesses and count, of answer tokens; and the loss weight of all its tokens.
      directions: float32 [directions, 3], the same first three by the document's direction.
      tokens: float32 scalar, input tokens that are not padding.
    """

    objective: jax.Array
    modalities: jax.Array
    directions: jax.Array
    tokens: jax.Array

    @classmethod
    def zeros(cls, num_modalities: int, num_directions: int) -> "MetricSums":
        return cls(
            jnp.zeros(2), jnp.zeros((num_modalities, 4)), jnp.zeros((num_directions, 3)), jnp.zeros(())
        )


@flax.struct.dataclass
class TrainState:
    """`step` counts finished updates (int32 scalar); `params` and `opt_state` as Flax and optax make them."""

    step: jax.Array
    params: Any
    opt_state: Any
    sums: MetricSums


def abstract_state(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    sums: MetricSums,
    mesh: Mesh,
    rules: sharding.Rules,
) -> TrainState:
    """Shapes, dtypes and target shardings of the state; nothing is computed."""
    boxed = jax.eval_shape(lambda: init_boxed_params(config, 0))
    params = nn.unbox(boxed)
    params_at = sharding.param_shardings(boxed, mesh, rules)
    opt_state = jax.eval_shape(lambda params: _init_optimizer(optimizer, params), params)
    opt_state_at = sharding.like_params(opt_state, params, params_at, mesh)
    everywhere = sharding.replicated(mesh)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state, jax.eval_shape(lambda: sums))
    state_at = TrainState(everywhere, params_at, opt_state_at, jax.tree.map(lambda _: everywhere, sums))
    return sharding.with_shardings(state, state_at)


def init_state(
    config: DecoderConfig, optimizer: optax.GradientTransformation, seed: int, abstract: TrainState
) -> TrainState:
    """A fresh state, each device making its own part; the numbers do not depend on the mesh."""

    def make() -> TrainState:
        params = init_params(config, seed)
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract.sums)
        return TrainState(jnp.zeros((), jnp.int32), params, _init_optimizer(optimizer, params), sums)

    return jax.jit(make, out_shardings=shardings_of(abstract))()


def _init_optimizer(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The optimizer's state, in float32 as the gradients are: in bfloat16 its means would hardly move."""
    return optimizer.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


def shardings_of(abstract: Any) -> Any:
    """The shardings that an abstract tree carries."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
