"""Rotary positions, segment-aware causal masks, and attention: written out, and by a kernel per accelerator.

Einsum letters: B batch, T query positions, S key slots, K key/value heads, G query heads per key/value head,
H head_dim.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from anygpt_jax.model import splash
from anygpt_jax.model.config import DecoderConfig

# Rows of a product that a TPU's matrix unit takes as quickly as one.
_SUBLANES = 8
# Finite, so that a row of masked scores still has a softmax.
MASKED = -1e30


def rope_tables(
    positions: jax.Array, length: int, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary embedding (RoFormer, arXiv 2104.09864).

    They are looked up in a constant: computed here, XLA would compute them again in every layer's fusions.

    Args:
      positions: int32 [B, T], each in 0 … length - 1; others give NaN.
    Returns:
      Two float32 arrays [B, T, 1, head_dim / 2], to be shared by all layers.
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(length)[:, None] * frequencies
    table = np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
    rows = jnp.take(table, positions, axis=1, mode="fill", fill_value=jnp.nan)
    return rows[0, :, :, None], rows[1, :, :, None]


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates [B, T, heads, H]; the two halves of H are the pair (Hugging Face's LLaMA layout)."""
    sin, cos = (table.astype(x.dtype) for table in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def apply_rope_by_product(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`apply_rope`, the same numbers, for a TPU: the halves change places in a product with a signed
    permutation, which is exact, so that no array of head_dim / 2 columns leaves half of the lanes idle."""
    half = x.shape[-1] // 2
    turn = np.zeros((2 * half, 2 * half), np.float32)
    turn[half + np.arange(half), np.arange(half)] = -1
    turn[np.arange(half), half + np.arange(half)] = 1
    sin, cos = (jnp.concatenate([table, table], axis=-1).astype(x.dtype) for table in tables)
    turned = jnp.matmul(x, turn.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
    return x * cos + turned * sin


def mask_bias(query_segments: jax.Array, key_segments: jax.Array, first_slot: jax.Array | int) -> jax.Array:
    """What is added to the scores: 0 where a query may read a key, MASKED elsewhere.

    A query reads the keys of its own segment in its own slot and before.

    Args:
      query_segments: int32 [B, T]; query t sits in slot first_slot + t.
      key_segments: int32 [B, S].
    Returns:
      float32 [B, T, S].
    """
    query_slots = first_slot + jnp.arange(query_segments.shape[1])
    causal = jnp.arange(key_segments.shape[1]) <= query_slots[:, None]
    visible = causal & (query_segments[:, :, None] == key_segments[:, None, :])
    return jnp.where(visible, 0.0, MASKED)


def for_mesh(config: DecoderConfig, mesh: Mesh, length: int) -> DecoderConfig:
    """The config with attention "auto" settled: the back end of the mesh's devices for rows of `length`."""
    platform = mesh.devices.flat[0].platform
    chosen = "einsum"
    if platform == "tpu" and splash.takes(config.head_dim, length):
        chosen = "splash"
    elif platform in ("gpu", "cuda") and config.dtype in ("bfloat16", "float16"):
        chosen = "cudnn"
    return dataclasses.replace(config, attention=chosen) if config.attention == "auto" else config


def self_mask(segment_ids: jax.Array, backend: str) -> jax.Array:
    """What a back end of `self_attend` needs of segment ids [B, T]: them, or the bias made of them."""
    return mask_bias(segment_ids, segment_ids, 0) if backend in ("auto", "einsum") else segment_ids


def self_attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, backend: str, blocks: int = 1
) -> jax.Array:
    """Causal softmax attention within segments, queries and keys at the same T positions.

    Args:
      query: [B, T, K·G, H]; key, value: [B, T, K, H]. mask: of `self_mask` for the same back end.
      backend: see DecoderConfig.attention. blocks: of `attend`, which is what einsum means.
    Returns:
      [B, T, K·G, H].
    """
    if backend == "splash":
        return splash.attend(query, key, value, mask)
    query, key, value = splash.named_for_remat(query, key, value)
    if backend == "cudnn":
        return library_attend(query, key, value, mask, "cudnn")
    return attend(query, key, value, mask, blocks)


def library_attend(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, implementation: str
) -> jax.Array:
    """`self_attend` by jax.nn.dot_product_attention; `implementation` is cudnn (half precision) or xla."""
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]  # [B, 1, T, T]
    return jax.nn.dot_product_attention(
        query, key, value, mask=same, is_causal=True, implementation=implementation
    )


def is_library_result(primitive: Any, *_: Any, **__: Any) -> bool:
    """A remat policy: keeps what cuDNN's attention leaves for its backward pass, which has no names."""
    return primitive.name.startswith("dot_product_attention_fwd")


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, blocks: int = 1) -> jax.Array:
    """Softmax attention; scores and softmax are float32 whatever the dtype.

    Args:
      query: [B, T, K·G, H]; key, value: [B, S, K, H]; bias: float32 [B, T, S] of `mask_bias`; no gradient
        flows to it.
      blocks: where T = S, the queries are taken in this many blocks, each with the keys up to its end: the
        scores above the diagonal are then mostly not computed. Must divide T.
    Returns:
      [B, T, K·G, H].
    """
    batch, length, heads, head_dim = query.shape
    query = _by_key_head(query, key.shape[2])
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)  # [B, K, S, H]
    size = length // blocks
    parts = []
    for start in range(0, length, size):
        stop = start + size if blocks > 1 else key.shape[2]
        rows = slice(start, start + size)
        block = query[:, :, :, rows], key[:, :, :stop], value[:, :, :stop], bias[:, None, None, rows, :stop]
        parts.append(_attend_block(*block))
    mixed = jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, head_dim)


def attend_beside_cache(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    stored_keys: jax.Array,
    stored_values: jax.Array,
    bias: jax.Array,
    stored_bias: jax.Array,
) -> jax.Array:
    """Softmax attention to the T new positions and to a cache that they are not in, which is only read.

    Args:
      query: [B, T, K·G, H]; key, value: [B, K, T, H]; stored_keys, stored_values: [B, K, S, H].
      bias: float32 [B, T, T]; stored_bias: float32 [B, T, S]; both of `mask_bias`.
    Returns:
      [B, T, K·G, H].
    """
    batch, length, heads, head_dim = query.shape
    query = _by_key_head(query, key.shape[1])

    def product(letters: str, rows: jax.Array, others: jax.Array) -> jax.Array:
        # A single row XLA:TPU multiplies in the vector unit, which takes five times as long.
        missing = max(0, _SUBLANES - length)
        rows = jnp.pad(rows, [(0, 0)] * 3 + [(0, missing), (0, 0)])
        return jnp.einsum(letters, rows, others, preferred_element_type=jnp.float32)[:, :, :, :length]

    parts = (key, value, bias), (stored_keys, stored_values, stored_bias)
    scores = [product("BKGTH,BKSH->BKGTS", query, keys) + b[:, None, None] for keys, _, b in parts]
    top = functools.reduce(jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - top) for part in scores]
    total = sum(jnp.sum(part, axis=-1, keepdims=True) for part in weights)
    mixed = sum(
        product("BKGTS,BKSH->BKGTH", part.astype(values.dtype), values)
        for part, (_, values, _) in zip(weights, parts, strict=True)
    )
    mixed = (mixed / total).astype(value.dtype).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, head_dim)


def _by_key_head(query: jax.Array, kv_heads: int) -> jax.Array:
    """Queries [B, T, K·G, H], scaled, as [B, K, G, T, H]: the G heads of a key head are one run of rows."""
    batch, length, heads, head_dim = query.shape
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    return query.transpose(0, 2, 3, 1, 4) * head_dim**-0.5


@jax.custom_vjp
def _attend_block(query, key, value, bias):
    return _attend_forward(query, key, value, bias)[0]


def _attend_forward(query, key, value, bias):
    """Mixed values [B, K, G, T, H], with what the gradient needs: the softmax before its division."""
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", query, key, preferred_element_type=jnp.float32) + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    mixed = jnp.einsum("BKGTS,BKSH->BKGTH", weights, value, preferred_element_type=jnp.float32) / total
    mixed = mixed.astype(value.dtype)
    return mixed, (query, key, value, weights, total, mixed)


def _attend_backward(residuals, gradient):
    """The softmax's gradient needs Σ weight · d weight over keys: mixed · d mixed (arXiv 2205.14135)."""
    query, key, value, weights, total, mixed = residuals
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    gradient = gradient / total
    shift = jnp.sum(gradient * mixed, axis=-1, keepdims=True)
    gradient = gradient.astype(value.dtype)
    d_scores = weights * (einsum("BKGTH,BKSH->BKGTS", gradient, value) - shift)
    d_scores = d_scores.astype(value.dtype)
    d_query = einsum("BKGTS,BKSH->BKGTH", d_scores, key)
    d_key = einsum("BKGTS,BKGTH->BKSH", d_scores, query)
    d_value = einsum("BKGTS,BKGTH->BKSH", weights, gradient)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_attend_block.defvjp(_attend_forward, _attend_backward)
