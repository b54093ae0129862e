"""Optimizers and their schedule."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from anygpt_tokenizers.cli import UserError
from optax.contrib import MuonDimensionNumbers, muon

SPIKE_WARMUP = 50  # steps before a gradient norm can count as a spike
_SPIKE_MEMORY = 0.98  # of the mean norm, per step

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

    Weight decay touches matrices only, never norms.
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
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), update)
    return (skip_spikes(optimizer, config.skip_spikes) if config.skip_spikes else optimizer), rate


class SpikeState(NamedTuple):
    """`inner`: the optimizer's; `mean` of the norms so far, decayed and not yet corrected for its start at 0;
    `count` of the norms in it; whether the last step was `skipped`."""

    inner: Any
    mean: jax.Array
    count: jax.Array
    skipped: jax.Array


def skip_spikes(inner: optax.GradientTransformation, multiple: float) -> optax.GradientTransformation:
    """Leaves out the updates whose gradient norm is over `multiple` times its running mean.

    Parameters and `inner`'s state then stay as they are, and the mean too. The first SPIKE_WARMUP steps are
    never left out, nor is a norm that is not finite: such a run has to stop.
    """

    def init(params: Any) -> SpikeState:
        return SpikeState(inner.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def update(gradients: Any, state: SpikeState, params: Any = None) -> tuple[Any, SpikeState]:
        norm = optax.global_norm(gradients)
        mean = state.mean / (1 - _SPIKE_MEMORY ** jnp.maximum(state.count, 1))
        spike = (state.count >= SPIKE_WARMUP) & (norm > multiple * mean) & jnp.isfinite(norm)
        updates, after = inner.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(spike, jnp.zeros_like(u), u), updates)
        after = jax.tree.map(lambda old, new: jnp.where(spike, old, new), state.inner, after)
        mean = jnp.where(spike, state.mean, _SPIKE_MEMORY * state.mean + (1 - _SPIKE_MEMORY) * norm)
        return updates, SpikeState(after, mean, state.count + ~spike, spike)

    return optax.GradientTransformation(init, update)


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
