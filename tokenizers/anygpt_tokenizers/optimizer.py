"""The optimiser of every trainer of codecs."""

from typing import Any

import jax
import optax
from ml_collections import config_dict


def make_optimizer(config: config_dict.ConfigDict) -> optax.GradientTransformation:
    """Clipped AdamW under a linear warm-up and a cosine to zero; only matrices and kernels decay.

    Of config.optimizer: learning_rate, warmup (steps), b1, b2, weight_decay, clip (of the global norm;
    infinite for none), and optionally start, the learning rate at step 0. `config.steps` is the length of
    the cosine.
    """
    o = config.optimizer
    warmup = min(o.warmup, config.steps - 1)
    start = o.get("start", 0.0)
    schedule = optax.warmup_cosine_decay_schedule(start, o.learning_rate, warmup, config.steps)

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    adamw = optax.adamw(schedule, b1=o.b1, b2=o.b2, weight_decay=o.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(o.clip), adamw)
