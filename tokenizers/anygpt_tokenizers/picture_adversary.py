"""What training against a discriminator of pictures adds to a codec's loss.

As `audio_adversary` does for sound: the discriminator's weights are part of the training state and it learns
inside the codec's own loss, so that one update of a codec is one function, with or without it. The losses are
the non-saturating ones (Goodfellow et al. 2014), with R1's penalty (Mescheder et al. 2018) on real pictures.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn import softplus
from ml_collections import config_dict

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.optimizer import make_optimizer
from anygpt_tokenizers.picture_discriminator import SMALLEST, Discriminator


class AdversaryState(NamedTuple):
    """Parameters of the `Discriminator`, and the state of their optimiser."""

    params: dict
    opt_state: Any


class PictureAdversary:
    """The discriminator of a recipe, and how it learns; its optimiser has the settings of the codec's own.

    config.adversary: `multiplier` and `shrink` (see `Discriminator`), `penalty`, the factor of R1's mean
    squared gradient, and `penalty_every`: the penalty is computed at every so many steps, and counts as many
    times as much then.
    """

    def __init__(self, config: config_dict.ConfigDict):
        self.config, self.size = config.adversary, config.codec.image_size
        if self.size <= SMALLEST or self.size & (self.size - 1):
            raise UserError(
                f"The discriminator halves pictures down to {SMALLEST} pixels, so config.codec.image_size "
                f"must be a power of two, not {self.size}; or set config.loss_weights.adversarial=0."
            )
        self.network = Discriminator(self.config.multiplier, self.config.shrink)
        self.optimizer = make_optimizer(config)

    def init(self, rng: jax.Array) -> AdversaryState:
        """A fresh discriminator."""
        params = initial_params(self.network, rng, jnp.zeros((1, self.size, self.size, 3)))
        return AdversaryState(params, self.optimizer.init(params))

    def update(
        self, state: AdversaryState, real: jax.Array, made: jax.Array, step: jax.Array
    ) -> tuple[AdversaryState, dict[str, jax.Array]]:
        """The discriminator learns to tell `made` pictures [B, S, S, 3] from `real`: (state, figures)."""
        made = jax.lax.stop_gradient(made)

        def loss_fn(params: dict) -> tuple[jax.Array, dict]:
            logits = self._logits(params, jnp.concatenate([real, made]))
            of_real, of_made = jnp.split(logits, 2)
            loss = jnp.mean(softplus(-of_real)) + jnp.mean(softplus(of_made))
            penalty = self._penalty(params, real, step) if self.config.penalty else 0.0
            right = (jnp.mean(of_real > 0) + jnp.mean(of_made < 0)) / 2
            return loss + penalty, {"discriminator": loss, "discriminator_right": right}

        # The outer gradient is the codec's; nothing in here belongs to it.
        params, opt_state = jax.lax.stop_gradient(state)
        grads, figures = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        state = AdversaryState(optax.apply_updates(params, updates), opt_state)
        return jax.lax.stop_gradient((state, figures))

    def term(self, state: AdversaryState, made: jax.Array) -> jax.Array:
        """What the codec minimises: that the discriminator takes its pictures for made."""
        return jnp.mean(softplus(-self._logits(state.params, made)))

    def _logits(self, params: dict, pixels: jax.Array) -> jax.Array:
        return self.network.apply({"params": params}, pixels)

    def _penalty(self, params: dict, real: jax.Array, step: jax.Array) -> jax.Array:
        def penalty() -> jax.Array:
            slopes = jax.grad(lambda pixels: jnp.sum(self._logits(params, pixels)))(real)
            return jnp.mean(jnp.sum(slopes**2, axis=(1, 2, 3)))

        every, factor = self.config.penalty_every, self.config.penalty
        if every == 1:
            return factor * penalty()
        return factor * every * jax.lax.cond(step % every == 0, penalty, lambda: jnp.zeros(()))
