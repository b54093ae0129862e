"""Attention of the picture networks, which holds few scores at a time.

Letters: B rows, N queries, M keys, H heads, K width of a head.
"""

import jax
import jax.numpy as jnp

# Scores of a row that are held at a time (float32, so 8 MiB). 96 × 96 pixels that attend to one another have
# 85 million a head; writing and reading those again and again takes a CPU longer than the products do.
MOST_SCORES = 1 << 21
# But no fewer queries at a time, if there are as many: each piece reads all keys and values.
FEWEST_QUERIES = 256
# Of a row with as many, a CPU holds no other row's scores at the same time.
MANY_SCORES = 1 << 19


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """Of products in `dtype`: float32 means float32, also where a back end would round it to bfloat16."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """query [B, N, H, K], key and value [B, M, H, K] -> [B, N, H·K], in the query's dtype.

    Scores are scaled by 1/√K, then `mask` float32 [N, M] is added to them; softmax is float32. Without a mask
    heads, pieces of the queries and, on a CPU, rows go through in turn if there are many scores. Rows do
    nowhere else, because a mesh may have divided them.
    """
    scores = query.shape[2] * query.shape[1] * key.shape[1]
    if mask is not None or scores < MANY_SCORES:
        return _at_once(query, key, value, mask)
    function = _at_once if scores <= MOST_SCORES else _in_pieces

    def in_turn(*arrays: jax.Array) -> jax.Array:
        return jax.lax.map(lambda row: function(*(part[None] for part in row))[0], arrays)

    return jax.lax.platform_dependent(query, key, value, cpu=in_turn, default=function)


def _at_once(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    batch, size, heads, width = query.shape
    mixed = _mix(query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3), mask)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, size, heads * width)


def _in_pieces(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Head by head, and no more queries at a time than `MOST_SCORES` and `FEWEST_QUERIES` let."""
    batch, size, heads, width = query.shape
    fitting = max(MOST_SCORES // key.shape[1], FEWEST_QUERIES)
    length = next(n for n in range(min(size, fitting), 0, -1) if size % n == 0)

    def head(arrays: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value = arrays
        return jax.lax.map(lambda piece: _mix(piece, key, value), query)

    query = query.reshape(batch, -1, length, heads, width).transpose(3, 1, 0, 2, 4)  # [H, N / length, B, ...]
    mixed = jax.lax.map(head, (query, key.transpose(2, 0, 3, 1), value.transpose(2, 0, 1, 3)))
    return mixed.transpose(2, 1, 3, 0, 4).reshape(batch, size, heads * width)


def _mix(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[..., N, K] of queries [..., N, K], keys [..., K, M] and values [..., M, K].

    In this order of the axes, and with the sums divided out at the end, XLA:CPU turns no scores around.
    """
    exact = precision_of(query.dtype)
    scores = jnp.matmul(query, key, precision=exact, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    scores = scores if mask is None else scores + mask
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.matmul(
        weights.astype(value.dtype), value, precision=exact, preferred_element_type=jnp.float32
    )
    return (mixed / weights.sum(-1, keepdims=True)).astype(query.dtype)
