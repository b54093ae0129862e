"""What training against discriminators adds to a codec's loss, and the balance between the parts of a loss.

Both follow the codec inside its own loss function: the discriminators' weights and the balance are part of
the training state, so that one update of a codec is one function, with or without them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import config_dict

from anygpt_tokenizers.audio_discriminators import Discriminators, Judgement, kernel_sizes
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.fresh_weights import fresh_weights
from anygpt_tokenizers.optimizer import make_optimizer


class AdversaryState(NamedTuple):
    """Variables of `Discriminators` (collections "params" and perhaps "spectral"), and of their optimiser."""

    variables: dict
    opt_state: Any


class Adversary:
    """The discriminators of a recipe, and how they learn.

    config.adversary: `networks` (fields of `Discriminators`), `kind` "least_squares" (SpeechTokenizer,
    HiFi-GAN) or "hinge" (EnCodec), and `every`: they learn at every so many steps, which on a CPU costs more
    than it saves (XLA:CPU is 50 times slower at the gradient by a kernel inside a conditional). Their
    optimiser has the settings of the codec's own.
    """

    def __init__(self, config: config_dict.ConfigDict):
        self.config = config.adversary
        if self.config.kind not in ("least_squares", "hinge"):
            raise UserError(
                f'config.adversary.kind is {self.config.kind!r}; there are "least_squares" and "hinge".'
            )
        self.network = Discriminators(**config.adversary.networks.to_dict())
        self.optimizer = make_optimizer(config)

    def init(self, rng: jax.Array, length: int) -> AdversaryState:
        """Fresh discriminators of waveforms of `length` samples."""
        shapes = jax.eval_shape(self.network.init, rng, jnp.zeros((1, length)))
        flat = traverse_util.flatten_dict(fresh_weights(shapes, rng))
        for path, leaf in flat.items():
            if path[-1] == "size":
                flat[path] = kernel_sizes(flat[*path[:-1], "kernel"])
            elif path[0] == "spectral":
                flat[path] = jnp.full(leaf.shape, leaf.size**-0.5)
        variables = traverse_util.unflatten_dict(flat)
        return AdversaryState(variables, self.optimizer.init(variables["params"]))

    def update(
        self, state: AdversaryState, real: jax.Array, made: jax.Array, step: jax.Array
    ) -> tuple[AdversaryState, jax.Array]:
        """The discriminators learn to tell waveforms `made` [B, T] from `real` ones: (state, their loss)."""
        made = jax.lax.stop_gradient(made)

        def loss_fn(params: dict) -> tuple[jax.Array, dict]:
            variables = {**state.variables, "params": params}
            judgements, changed = self.network.apply(
                variables, jnp.concatenate([real, made]), mutable=["spectral"]
            )
            return discriminator_loss(judgements, self.config.kind), changed

        def learn(state: AdversaryState) -> tuple[AdversaryState, jax.Array]:
            params = state.variables["params"]
            (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            updates, opt_state = self.optimizer.update(grads, state.opt_state, params)
            variables = {**state.variables, **changed, "params": optax.apply_updates(params, updates)}
            return AdversaryState(variables, opt_state), loss

        # The outer gradient is the codec's; nothing in here belongs to it.
        state = jax.lax.stop_gradient(state)
        if self.config.every == 1:
            state, loss = learn(state)
        else:
            state, loss = jax.lax.cond(
                step % self.config.every == 0,
                learn,
                lambda state: (state, loss_fn(state.variables["params"])[0]),
                state,
            )
        return jax.lax.stop_gradient((state, loss))

    def terms(self, state: AdversaryState, real: jax.Array, made: jax.Array) -> dict[str, jax.Array]:
        """What the codec minimises: "adversarial", and "feature", the distance of the layers' activations."""
        judgements = self.network.apply(state.variables, jnp.concatenate([real, made]))
        if self.config.kind == "least_squares":
            adversarial = sum(jnp.mean((1 - half(j.logits, 1)) ** 2) for j in judgements)
        else:
            adversarial = -sum(jnp.mean(half(j.logits, 1)) for j in judgements) / len(judgements)
        return {"adversarial": adversarial, "feature": feature_loss(judgements)}


def half(array: jax.Array, which: int) -> jax.Array:
    """The first or the second half of the rows: real sound, or made."""
    size = array.shape[0] // 2
    return array[which * size : (which + 1) * size]


def discriminator_loss(judgements: list[Judgement], kind: str) -> jax.Array:
    """What discriminators minimise, from judgements of real waveforms and, after them, of as many made."""
    total = 0.0
    for judgement in judgements:
        real, made = half(judgement.logits, 0), half(judgement.logits, 1)
        if kind == "least_squares":
            total += jnp.mean((1 - real) ** 2) + jnp.mean(made**2)
        else:
            total += jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made))
    return total if kind == "least_squares" else total / len(judgements)


def feature_loss(judgements: list[Judgement]) -> jax.Array:
    """Mean absolute difference of every layer's activations for real and made sound, summed."""
    return sum(
        jnp.mean(jnp.abs(jax.lax.stop_gradient(half(found, 0)) - half(found, 1)))
        for judgement in judgements
        for found in judgement.features
    )


class Balance(NamedTuple):
    """Moving averages of gradient norms [terms], and the sum of their weights so far."""

    sums: jax.Array
    weight: jax.Array


def init_balance(terms: int) -> Balance:
    """Nothing measured yet."""
    return Balance(jnp.zeros(terms), jnp.zeros(()))


def balanced(
    balance: Balance,
    terms_of: Callable[[jax.Array], jax.Array],
    output: jax.Array,
    weights: jax.Array,
    decay: float,
) -> tuple[Balance, jax.Array, jax.Array]:
    """EnCodec's balancer: every term pulls at the output in proportion to its weight, whatever its scale.

    The gradient of each term by `output` is divided by a moving average of its norm (the mean over rows of a
    row's norm), and multiplied by its share of the weights.

    Args:
      terms_of: output [B, ...] -> the terms, float32 [N].
      weights: [N]. decay: of the moving average.

    Returns:
      The new balance, the terms, and a scalar whose gradient by whatever `output` depends on is the balanced
      one.
    """
    terms, pull_back = jax.vjp(terms_of, jax.lax.stop_gradient(output))
    grads = [pull_back(one)[0] for one in jnp.eye(len(weights))]
    norms = jnp.stack([jnp.mean(jnp.sqrt(jnp.sum(g**2, axis=range(1, g.ndim)))) for g in grads])
    balance = Balance(decay * balance.sums + (1 - decay) * norms, decay * balance.weight + (1 - decay))
    scales = weights / weights.sum() / (balance.sums / balance.weight + 1e-12)
    gradient = sum(scale * g for scale, g in zip(scales, grads, strict=True))
    gradient, balance, terms = jax.lax.stop_gradient((gradient, balance, terms))
    return balance, terms, jnp.sum(gradient * output)
