"""The optimiser of every trainer of codecs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict


def make_optimizer(config: config_dict.ConfigDict) -> optax.GradientTransformation:
    """Clipped AdamW under a linear warm-up and a cosine; only matrices and kernels decay.

    Of config.optimizer: learning_rate, warmup (steps), b1, b2, weight_decay, clip (of the global norm;
    infinite for none), and optionally:
    - start, end: the learning rates at step 0 and, zero by default, of the cosine's end.
    - epoch_steps: if given, the cosine falls once in so many steps, as in LAVIS, and counts from step 0.
    - undecayed: ends of parameters' names ("bias", "scale") that don't decay, whatever their shape; of layers
      stacked along an axis, biases are matrices too.
    `config.steps` is the length of the cosine.
    """
    o = config.optimizer
    warmup = min(o.warmup, config.steps - 1)
    start, end = o.get("start", 0.0), o.get("end", 0.0)
    schedule = optax.warmup_cosine_decay_schedule(start, o.learning_rate, warmup, config.steps, end)
    if o.get("epoch_steps", 0):
        schedule = _schedule_by_epochs(config, start, end)
    undecayed = tuple(o.get("undecayed", ()))

    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, p: p.ndim > 1 and not jax.tree_util.keystr(path, simple=True).endswith(undecayed),
            params,
        )

    adamw = optax.adamw(schedule, b1=o.b1, b2=o.b2, weight_decay=o.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(o.clip), adamw)


def _schedule_by_epochs(config: config_dict.ConfigDict, start: float, end: float) -> optax.Schedule:
    """A linear warm-up; then the cosine's value at the beginning of each epoch, all through it."""
    o = config.optimizer
    epochs = -(-config.steps // o.epoch_steps)

    def schedule(step: jax.Array) -> jax.Array:
        fallen = 0.5 * (1 + jnp.cos(jnp.pi * (step // o.epoch_steps) / epochs))
        rising = start + (o.learning_rate - start) * step / max(o.warmup, 1)
        return jnp.where(step < o.warmup, rising, end + (o.learning_rate - end) * fallen)

    return schedule
