"""Optimizers and their schedule."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from anygpt_tokenizers.cli import UserError
from optax.contrib import MuonDimensionNumbers, muon

from anygpt_jax.training.state import TrainState

SPIKE_WARMUP = 50  # steps before a gradient norm or a loss can count as a spike
_SPIKE_MEMORY = 0.98  # of the two means, per step

# The summed axes and the produced axes of each stacked kernel of a layer; axis 0 counts layers.
_MUON_AXES = {
    "query": ((1,), (2, 3)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "output": ((1, 2), (3,)),
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
}


def make_schedule(peak: float, steps: int, kind: str, warmup: float, final: float) -> optax.Schedule:
    """Linear warm-up over the fraction `warmup` of `steps`, then cosine or linear decay to `final` · peak."""
    warmup_steps = max(1, round(warmup * steps))
    decay_steps = max(1, steps - warmup_steps)
    if kind == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=final)
    elif kind == "linear":
        decay = optax.linear_schedule(peak, peak * final, decay_steps)
    else:
        raise UserError(f"config.optimizer.schedule = {kind!r} is neither 'cosine' nor 'linear'.")
    # The first step's rate is not 0: it is one warm-up increment.
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([rise, decay], [warmup_steps])


def make_optimizer(config: Any, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation of `config.optimizer` (fields: training/defaults.py) and its learning-rate schedule.

    Weight decay touches matrices only, never norms. Its `update` takes the batch's loss as `value`.
    """

    def schedule(peak: float) -> optax.Schedule:
        return make_schedule(peak, steps, config.schedule, config.warmup, config.final)

    rate = schedule(config.learning_rate)
    if config.name == "adamw":
        update = optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_is_matrix
        )
    elif config.name == "muon":
        update = muon(
            schedule(config.muon_learning_rate),
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=_muon_axes,
            # Updates have the same root mean square whatever the matrix's shape (arXiv 2502.16982).
            consistent_rms=1.0,
        )
    else:
        raise UserError(f"config.optimizer.name = {config.name!r} is neither 'adamw' nor 'muon'.")
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    optimizer = optax.chain(clip, update)
    if config.skip_spikes or config.skip_loss_spikes:
        optimizer = skip_spikes(optimizer, config.skip_spikes, config.skip_loss_spikes)
    return optax.with_extra_args_support(optimizer), rate


class SpikeState(NamedTuple):
    """`inner`: the optimizer's; `means` float32 [2] of the gradient norms and of the losses, decayed and not
    yet corrected for their start at 0; `count` of the steps in them; whether the last was `skipped`."""

    inner: Any
    means: jax.Array
    count: jax.Array
    skipped: jax.Array


def as_saved(abstract: TrainState, fields: Mapping[str, Any]) -> TrainState:
    """`abstract` with the optimizer state that a run with the fields `fields` of config.optimizer has saved.

    Skipping of spikes can be turned on and off from one start of a run to the next; see `as_wanted`.
    """
    had = bool(fields.get("skip_spikes") or fields.get("skip_loss_spikes"))
    state = abstract.opt_state
    if had == isinstance(state, SpikeState):
        return abstract
    if not had:
        return abstract.replace(opt_state=state.inner)
    like = functools.partial(jax.ShapeDtypeStruct, sharding=abstract.step.sharding)
    means, count, skipped = like((2,), jnp.float32), like((), jnp.int32), like((), bool)
    return abstract.replace(opt_state=SpikeState(state, means, count, skipped))


def as_wanted(state: TrainState, abstract: TrainState) -> TrainState:
    """A restored state with the means of spikes that `abstract` has: fresh ones, or none."""
    has, wants = (isinstance(s.opt_state, SpikeState) for s in (state, abstract))
    if has == wants:
        return state
    if has:
        return state.replace(opt_state=state.opt_state.inner)
    _, *fresh = abstract.opt_state
    fresh = [jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding) for leaf in fresh]
    return state.replace(opt_state=SpikeState(state.opt_state, *fresh))


def skip_spikes(
    inner: optax.GradientTransformation, norm_multiple: float, loss_multiple: float
) -> optax.GradientTransformationExtraArgs:
    """Leaves out the updates whose gradient norm or loss is over its multiple of its running mean; 0: never.

    Parameters and `inner`'s state then stay as they are, but for the learning rate's place in its schedule. A
    spike enters the means cut to its limit: one hardly moves them, but a change that lasts is learnt (one to
    ten times the value, where the multiple is 5, in nine steps). The first SPIKE_WARMUP steps are never left
    out, nor is what is not finite: such a run has to stop.
    """
    multiples = np.array([norm_multiple or np.inf, loss_multiple or np.inf], np.float32)

    def init(params: Any) -> SpikeState:
        return SpikeState(inner.init(params), jnp.zeros(2), jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def update(
        gradients: Any, state: SpikeState, params: Any = None, *, value: jax.Array, **_: Any
    ) -> tuple[Any, SpikeState]:
        seen = jnp.stack([optax.global_norm(gradients), value])
        limits = multiples * state.means / (1 - _SPIKE_MEMORY ** jnp.maximum(state.count, 1))
        spike = (state.count >= SPIKE_WARMUP) & jnp.any(seen > limits) & jnp.all(jnp.isfinite(seen))
        updates, after = inner.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(spike, jnp.zeros_like(u), u), updates)
        after = jax.tree.map(
            lambda old, new: new if _is_schedule(new) else jnp.where(spike, old, new),
            state.inner,
            after,
            is_leaf=_is_schedule,
        )
        learnt = jnp.where(spike, jnp.fmin(seen, limits), seen)
        means = _SPIKE_MEMORY * state.means + (1 - _SPIKE_MEMORY) * learnt
        return updates, SpikeState(after, means, state.count + 1, spike)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_schedule(state: Any) -> bool:
    """Whether this part of an optimizer's state is the place in a schedule, which every step moves."""
    return isinstance(state, optax.ScaleByScheduleState)


def _is_matrix(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


def _muon_axes(params: Any) -> Any:
    """Dimension numbers of the layers' kernels; None (AdamW) for everything else."""

    def axes(path, _):
        names = [key.key for key in path]
        if names[-1] != "kernel":
            return None
        return MuonDimensionNumbers(*_MUON_AXES[names[-2]])

    return jax.tree_util.tree_map_with_path(axes, params)
