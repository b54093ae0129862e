"""Cross-entropy over the vocabulary in tiles: float32, with z-loss, never all logits at once.

The gradient is computed in the same pass as the loss (each tile's logits are used and forgotten), so nothing
is recomputed and nothing of the size [B, L, V] is kept. Einsum letters: S batch shards, B rows of one shard,
T positions of one tile, D embed_dim, V vocab_size.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_jax.model.attention import MASKED
from anygpt_jax.model.gathering import divided_halfway


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """What is fixed about the loss.

    Attributes:
      num_real_rows: vocabulary rows from here on are padding and get no probability.
      z_loss: coefficient of log(Z)², which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5).
      tile: positions per row in one tile; the largest divisor of the length that is not above it is used.
      batch_shards: over how many devices the batch is divided; each sums its own gradient of the vocabulary
        table over all tiles, so that devices exchange it once and not once a tile.
    """

    num_real_rows: int
    z_loss: float = 0.0
    tile: int = 128
    batch_shards: int = 1


class LossSums(NamedTuple):
    """`total` is differentiable, a float32 scalar: Σ weight · (nll + z_loss · log(Z)²).

    `nll` float32 and `correct` bool, [B, L] each, are for the record only.
    """

    total: jax.Array
    nll: jax.Array
    correct: jax.Array


def tiled_cross_entropy(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array, spec: LossSpec
) -> LossSums:
    """The weighted sum of the tokens' losses.

    Args:
      hidden: [B, L, D] after the final norm. unembedding: [D, V].
      targets: int32 [B, L]. weights: float32 [B, L], 0 where there is no target; no gradient flows to them.
    """
    kernel = divided_halfway(unembedding.astype(hidden.dtype), ("embed", "vocab"))
    kernel = nn.with_logical_constraint(kernel, ("act_embed", "vocab"))
    return LossSums(*_cross_entropy(hidden, kernel, targets, weights, spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden, kernel, targets, weights, spec):
    def tile_step(_, tile):
        return None, _tile(tile, kernel, spec)[:2]

    _, (losses, records) = _scan_tiles(tile_step, None, (hidden, targets, weights), spec)
    return jnp.sum(losses), *(_join(record) for record in records)


def _forward(hidden, kernel, targets, weights, spec):
    """The loss, with its gradients for a total of weight 1 as what is kept for the backward pass."""
    shards = spec.batch_shards
    shape = (shards, *kernel.shape)
    kernel_gradient = nn.with_logical_constraint(jnp.zeros(shape, jnp.float32), ("batch", None, "vocab"))

    def tile_step(accumulated, tile):
        loss, records, logit_gradient = _tile(tile, kernel, spec)
        x = tile[0]
        hidden_gradient = jnp.einsum("BTV,DV->BTD", logit_gradient, kernel)
        by_shard = [a.reshape(shards, a.shape[0] // shards, *a.shape[1:]) for a in (x, logit_gradient)]
        update = jnp.einsum("SBTD,SBTV->SDV", *by_shard, preferred_element_type=jnp.float32)
        return accumulated + update, (loss, records, hidden_gradient)

    tiles = (hidden, targets, weights)
    kernel_gradient, (losses, records, hidden_gradient) = _scan_tiles(tile_step, kernel_gradient, tiles, spec)
    outputs = jnp.sum(losses), *(_join(record) for record in records)
    kernel_gradient = jnp.sum(kernel_gradient, axis=0).astype(kernel.dtype)
    kernel_gradient = divided_halfway(kernel_gradient, ("embed", "vocab"))
    kernel_gradient = nn.with_logical_constraint(kernel_gradient, ("embed", "vocab"))
    # Summed before the layers' backward pass starts: else the whole table's gradient lives all through it.
    return outputs, jax.lax.optimization_barrier((_join(hidden_gradient), kernel_gradient))


def _backward(spec, residuals, cotangents):
    hidden_gradient, kernel_gradient = residuals
    scale = cotangents[0]
    dtype = hidden_gradient.dtype
    return hidden_gradient * scale.astype(dtype), (kernel_gradient * scale).astype(dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _tile(tile, kernel, spec):
    """Loss of one tile (scalar), its records (nll, correct), and the gradient of the loss to its logits."""
    x, targets, weights = tile
    logits = jnp.einsum("BTD,DV->BTV", x, kernel, preferred_element_type=jnp.float32)
    logits = nn.with_logical_constraint(logits, ("batch", "length", "vocab"))
    rows = jnp.arange(logits.shape[-1])
    logits = jnp.where(rows < spec.num_real_rows, logits, MASKED)
    top = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - top[..., None])
    normaliser = jnp.sum(exponentials, axis=-1)
    log_z = jnp.log(normaliser) + top
    is_target = rows == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = log_z - target_logit
    loss = jnp.sum(weights * (nll + spec.z_loss * log_z**2))
    # d loss / d logit = weight · (probability · (1 + 2 · z_loss · log Z) − [is target])
    scale = weights * (1.0 + 2.0 * spec.z_loss * log_z) / normaliser
    gradient = exponentials * scale[..., None] - jnp.where(is_target, weights[..., None], 0.0)
    return loss, (nll, target_logit >= top), gradient.astype(x.dtype)


def _scan_tiles(step, carry, arrays, spec):
    """`jax.lax.scan` of `step` over tiles of the length axis of arrays [B, L, …]."""
    length = arrays[0].shape[1]
    tile = max(size for size in range(1, min(spec.tile, length) + 1) if length % size == 0)
    tiles = tuple(
        jnp.moveaxis(a.reshape(a.shape[0], length // tile, tile, *a.shape[2:]), 1, 0) for a in arrays
    )
    return jax.lax.scan(step, carry, tiles)


def _join(tiles: jax.Array) -> jax.Array:
    """[tiles, B, T, …] → [B, tiles · T, …]."""
    joined = jnp.moveaxis(tiles, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])
