"""Codebooks for pictures, fitted to data in seconds: nearest codes, k-means, books with a least distance.

Rounding latents that are still being learnt (FSQ, VQ with gradients) needs many thousand steps before its
codes are worth anything. One fitted to fixed projections of patches is good at once and cannot collapse.
"""

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def nearest_code(book: jax.Array, x: jax.Array) -> jax.Array:
    """Index int32 [...] of the row of `book` [N, D] nearest to x [..., D]; the first wins ties."""
    products = jnp.einsum("...d,nd->...n", x, book, precision=HIGHEST)
    nearness = 2 * products - jnp.sum(book**2, axis=-1)
    # What argmax gives, in two plain reductions: its own, of pairs, XLA:CPU computes one by one.
    nearest = nearness >= nearness.max(axis=-1, keepdims=True)
    last = len(book) - 1
    return jnp.where(nearest, jnp.arange(len(book), dtype=jnp.int32), last).min(axis=-1)


_nearest_code = jax.jit(nearest_code)


def unit(x: jax.Array) -> jax.Array:
    """Rows [..., D] divided by their lengths."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def kmeans(x: np.ndarray, size: int, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Lloyd's algorithm: `size` centres [size, D] of x [M, D], M ≥ size; empty ones become random rows."""
    book = x[rng.choice(len(x), size, replace=False)]
    for _ in range(iterations):
        book, counts = _means(x, book)
        empty = np.flatnonzero(counts == 0)
        book[empty] = x[rng.choice(len(x), len(empty), replace=False)]
    return book


def spread_book(x: np.ndarray, size: int, distance: float, iterations: int) -> np.ndarray:
    """Centres [n ≤ size, D] of x [M, D] that started at least `distance` apart.

    So there are only as many as the data need, and variation below the distance rarely changes a code: the
    farthest row becomes the next centre until none is farther than `distance`; then k-means centres them.
    """
    book = extend_spread(x[:1], x, size, distance)
    for _ in range(iterations):
        book = _means(x, book)[0]
    return book


def extend_spread(book: np.ndarray, x: np.ndarray, size: int, distance: float) -> np.ndarray:
    """Adds the row of x [M, D] farthest from the book until all are that near or `size` is reached."""
    gaps = np.min([np.linalg.norm(x - row, axis=1) for row in book], axis=0)
    while len(book) < size and gaps.max() > distance:
        row = x[np.argmax(gaps)]
        book = np.concatenate([book, row[None]])
        gaps = np.minimum(gaps, np.linalg.norm(x - row, axis=1))
    return book


def principal_basis(x: np.ndarray, dim: int) -> np.ndarray:
    """The `dim` orthonormal directions [D, dim] that keep most of x [M, D] (about zero, not the mean)."""
    _, vectors = np.linalg.eigh(x.T.astype(np.float64) @ x)
    return vectors[:, ::-1][:, :dim].astype(np.float32)


def _means(x: np.ndarray, book: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of k-means: the new book (rows without members stay) and the members of each row."""
    index = np.asarray(_nearest_code(book, x))
    counts = np.bincount(index, minlength=len(book))
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(index[order]) > 0])
    means = book.copy()
    used = index[order][starts]
    means[used] = np.add.reduceat(x[order].astype(np.float64), starts, axis=0) / counts[used, None]
    return means, counts
