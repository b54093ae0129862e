"""Rotary positions, segment-aware causal masks and the reference attention.

Einsum letters: B batch, T query positions, S key slots, K key/value heads, G query heads per key/value head,
H head_dim.
"""

import jax
import jax.numpy as jnp

# Finite, so that a row of masked scores still has a softmax.
MASKED = -1e30


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary embedding (RoFormer, arXiv 2104.09864).

    Args:
      positions: int32 [B, T].
    Returns:
      Two float32 arrays [B, T, 1, head_dim / 2], to be shared by all layers.
    """
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates [B, T, heads, H]; the two halves of H are the pair (Hugging Face's LLaMA layout)."""
    sin, cos = (table.astype(x.dtype) for table in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(query_segments: jax.Array, key_segments: jax.Array, first_slot: jax.Array | int) -> jax.Array:
    """Which key slots each query may read: same segment, no later slot.

    Args:
      query_segments: int32 [B, T]; query t sits in slot first_slot + t.
      key_segments: int32 [B, S].
    Returns:
      bool [B, T, S].
    """
    query_slots = first_slot + jnp.arange(query_segments.shape[1])
    causal = jnp.arange(key_segments.shape[1]) <= query_slots[:, None]
    return causal & (query_segments[:, :, None] == key_segments[:, None, :])


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention, written out: the reference that every faster kernel is compared with.

    Args:
      query: [B, T, K·G, H]; key, value: [B, S, K, H]; mask: bool [B, T, S], true where visible.
    Returns:
      [B, T, K·G, H]. Scores and softmax are float32 whatever the dtype.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim) * head_dim**-0.5
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, value).reshape(batch, length, heads, head_dim)
