"""One update: the weighted loss of a batch, its gradient (accumulated in a scan), and sums for the log."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from anygpt_tokenizers.cli import UserError
from jax.sharding import Mesh

from anygpt_jax import sharding
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.loss import LossSpec, tiled_cross_entropy
from anygpt_jax.training.state import MetricSums, TrainState, shardings_of

TEXT = "text"
ANSWER = 2  # the target role of a token of the answer; 1 is the prompt's, 0 has no loss

# All int32 [B, L]; anygpt_jax.data.pipeline says what each means.
BATCH_KEYS = ("tokens", "targets", "segment_ids", "positions", "target_roles", "directions")
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What a token's loss weighs: by its target's modality × its document's direction × its target's role.

    Attributes:
      modality_of: int32 [V], the index in `modalities` of every id (-1: padding rows).
      modalities, directions: names, in the order of the weights.
      modality_weights [M], direction_weights [directions], role_weights [3]: float32.
    """

    modality_of: np.ndarray
    modalities: tuple[str, ...]
    directions: tuple[str, ...]
    modality_weights: np.ndarray
    direction_weights: np.ndarray
    role_weights: np.ndarray
    z_loss: float

    @classmethod
    def from_config(cls, config: Any, vocabulary: Any) -> "Objective":
        """From loss_weights, direction_weights, prompt_loss_weight, z_loss; what is not named weighs 1."""
        modalities, directions = (TEXT, *vocabulary.modalities), tuple(vocabulary.directions())
        for name in config.direction_weights:
            if name not in directions:
                raise UserError(
                    f"config.direction_weights names {name!r}; the directions are {', '.join(directions)}."
                )
        return cls(
            modality_of=np.asarray(vocabulary.modality_table(), np.int32),
            modalities=modalities,
            directions=directions,
            modality_weights=np.array([config.loss_weights.get(n, 1.0) for n in modalities], np.float32),
            direction_weights=np.array(
                [config.direction_weights.get(n, 1.0) for n in directions], np.float32
            ),
            role_weights=np.array([0.0, config.prompt_loss_weight, 1.0], np.float32),
            z_loss=config.z_loss,
        )

    def zero_sums(self) -> MetricSums:
        return MetricSums.zeros(len(self.modalities), len(self.directions))


def batch_loss(
    params: Any, batch: Batch, config: DecoderConfig, objective: Objective, batch_shards: int = 1
) -> tuple[jax.Array, MetricSums]:
    """Σ weight · loss over a batch (arrays int32 [B, L]: see data.pipeline), and the batch's sums."""
    hidden, _ = Decoder(config).apply(
        {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"]
    )
    targets, roles, directions = batch["targets"], batch["target_roles"], batch["directions"]
    modality = jnp.asarray(objective.modality_of)[targets]
    weights = (
        jnp.asarray(objective.role_weights)[roles]
        * jnp.asarray(objective.direction_weights)[directions]
        * jnp.asarray(objective.modality_weights)[modality]
    )
    spec = LossSpec(config.num_real_rows, objective.z_loss, config.loss_tile, batch_shards)
    loss = tiled_cross_entropy(hidden, params["unembedding"], targets, weights, spec)

    answers = (roles == ANSWER).astype(jnp.float32)
    columns = jnp.stack([loss.nll * answers, loss.correct * answers, answers, weights], axis=-1)  # [B, L, 4]
    by_modality = _group_sums(modality, len(objective.modalities), columns)
    by_direction = _group_sums(directions, len(objective.directions), columns[..., :3])
    tokens = jnp.sum(batch["segment_ids"] > 0, dtype=jnp.float32)
    return loss.total, MetricSums(
        jnp.stack([loss.total, jnp.sum(weights)]), by_modality, by_direction, tokens
    )


def compile_train_step(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    objective: Objective,
    mesh: Mesh,
    rules: sharding.Rules,
    abstract: TrainState,
    batch_shape: tuple[int, int],
    accumulation: int = 1,
    scoped_vmem_kib: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled update of batches [B, L]: (state, batch) → (next state, record).

    The record has loss, grad_norm, learning_rate and skipped (see optimizer.skip_spikes). The state given to
    the update is consumed. Compiled here and not at the first call, so that the first interval's speed is
    true. `scoped_vmem_kib`: see training/defaults.py.
    """
    differentiate = jax.value_and_grad(
        functools.partial(
            batch_loss, config=config, objective=objective, batch_shards=sharding.batch_shards(mesh)
        ),
        has_aux=True,
    )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, sums = _accumulated(differentiate, state.params, batch, accumulation)
        weight = jnp.maximum(sums.objective[1], 1e-9)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / weight, gradients)
        loss = sums.objective[0] / weight
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        record = {
            "loss": loss,
            "grad_norm": optax.global_norm(gradients),
            "learning_rate": learning_rate(state.step),
            "skipped": getattr(opt_state, "skipped", jnp.zeros((), bool)),
        }
        sums = jax.tree.map(jnp.add, state.sums, sums)
        return TrainState(state.step + 1, params, opt_state, sums), record

    state_at = shardings_of(abstract)
    jitted = jax.jit(
        update,
        in_shardings=(state_at, sharding.batch_sharding(mesh)),
        out_shardings=(state_at, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    rows = jax.ShapeDtypeStruct(batch_shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
    with sharding.sharding_context(mesh, rules):
        lowered = jitted.lower(abstract, dict.fromkeys(BATCH_KEYS, rows))
        return lowered.compile(compiler_options=_compiler_options(mesh, scoped_vmem_kib))


def _compiler_options(mesh: Mesh, scoped_vmem_kib: int) -> dict[str, str]:
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return {"xla_tpu_scoped_vmem_limit_kib": str(scoped_vmem_kib)} if on_tpu and scoped_vmem_kib else {}


def make_eval_step(
    config: DecoderConfig, objective: Objective, mesh: Mesh, rules: sharding.Rules
) -> Callable[[Any, Batch], MetricSums]:
    """The jitted sums of one batch, without an update."""

    def sums(params: Any, batch: Batch) -> MetricSums:
        return batch_loss(params, batch, config, objective, sharding.batch_shards(mesh))[1]

    jitted = jax.jit(sums, out_shardings=sharding.replicated(mesh))

    def run(params: Any, batch: Batch) -> MetricSums:
        with sharding.sharding_context(mesh, rules):
            return jitted(params, batch)

    return run


def _accumulated(
    differentiate: Callable, params: Any, batch: Batch, accumulation: int
) -> tuple[Any, MetricSums]:
    """Gradient and sums of a batch, one of `accumulation` equal parts at a time."""
    if accumulation == 1:
        (_, sums), gradients = differentiate(params, batch)
        return gradients, sums
    # Part i takes every accumulation-th row, so that each device keeps the rows it has.
    parts = {
        name: jnp.moveaxis(rows.reshape(-1, accumulation, *rows.shape[1:]), 1, 0)
        for name, rows in batch.items()
    }

    def add_part(carry, part):
        (_, sums), gradients = differentiate(params, part)
        return jax.tree.map(jnp.add, carry, (gradients, sums)), None

    first = {name: rows[0] for name, rows in parts.items()}
    shapes = jax.eval_shape(differentiate, params, first)
    # In float32, whatever the parameters are, so that no part's share is rounded away.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (shapes[1], shapes[0][1]))
    (gradients, sums), _ = jax.lax.scan(add_part, zeros, parts)
    return gradients, sums


def _group_sums(groups: jax.Array, count: int, columns: jax.Array) -> jax.Array:
    """Sums of columns [B, L, C] by group [B, L] → [count, C]; a group outside 0 … count - 1 is left out."""
    member = jax.nn.one_hot(groups, count, dtype=jnp.float32)
    return jnp.einsum("BLG,BLC->GC", member, columns, precision=jax.lax.Precision.HIGHEST)
