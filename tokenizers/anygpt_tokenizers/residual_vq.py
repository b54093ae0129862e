"""Residual vector quantisation with codebooks learnt by exponential moving averages.

Nothing here is hidden in a module: the codebooks are an explicit `CodebookState` that a training step takes
and returns (van den Oord et al. 2017, appendix A.1; residual levels as in SoundStream, Zeghidour et al.
2021). Every level keeps a pool of recent latents: k-means starts from it, and codes that fell out of use are
moved onto it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


class CodebookState(NamedTuple):
    """Codebooks of K levels of N codes of width D, and what their updates need.

    embed [K, N, D]: the codebooks. sums [K, N, D], counts [K, N]: moving sums of the vectors given to each
    code, and of their number. pool [K, P, D]: recent residuals of each level.
    """

    embed: jax.Array
    sums: jax.Array
    counts: jax.Array
    pool: jax.Array


def init_codebooks(levels: int, size: int, dimension: int, pool: int) -> CodebookState:
    """All-zero codebooks; `kmeans_codebooks` fills them once the pool holds real latents."""
    shapes = [(levels, size, dimension), (levels, size, dimension), (levels, size), (levels, pool, dimension)]
    return CodebookState(*(jnp.zeros(shape, jnp.float32) for shape in shapes))


def nearest_code(codebook: jax.Array, x: jax.Array) -> jax.Array:
    """Index int32 [...] of the code nearest to x [..., D] in codebook [N, D]; the first wins ties."""
    x, codebook = x.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.einsum("...d,nd->...n", x, codebook, precision=HIGHEST)
    return jnp.argmax(2 * products - jnp.sum(codebook**2, -1), axis=-1).astype(jnp.int32)


def quantize(codebooks: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Quantises x [..., D] level by level with codebooks [K, N, D].

    Returns codes int32 [..., K], the sum of the chosen vectors [..., D], and each level's input [..., K, D].
    """
    residual, codes, inputs = x.astype(jnp.float32), [], []
    for codebook in codebooks:
        index = nearest_code(codebook, residual)
        codes.append(index)
        inputs.append(residual)
        residual = residual - codebook[index]
    return jnp.stack(codes, -1), x - residual, jnp.stack(inputs, -2)


def remainders(x: jax.Array, quantized: jax.Array, inputs: jax.Array) -> jax.Array:
    """What is left of x [..., D] after the first level, the first two, ..., all: [..., K, D].

    `quantized` and `inputs` are those that `quantize` returned.
    """
    return jnp.concatenate([inputs[..., 1:, :], (x - quantized)[..., None, :]], axis=-2)


def dequantize(codebooks: jax.Array, codes: jax.Array) -> jax.Array:
    """Sum [..., D] of the vectors of codes [..., K] in codebooks [K, N, D]."""
    return sum(codebook[codes[..., level]] for level, codebook in enumerate(codebooks))


def update_codebooks(
    state: CodebookState,
    inputs: jax.Array,
    codes: jax.Array,
    rng: jax.Array,
    decay: float,
    restart_below: float,
    used: jax.Array | None = None,
) -> CodebookState:
    """One moving-average step of every level; codes that are hardly used move onto random recent latents.

    Args:
      inputs: [M, K, D], each level's input (from `quantize`). codes: [M, K].
      decay: of the moving averages.
      restart_below: a code is restarted when its moving count falls below this fraction of the mean count.
        With 0 none ever is; that is what SpeechTokenizer's own code comes to, which replaces a dead code but
        then overwrites it with its old average.
      used: bool [K], the levels that took part in this step; the others' codebooks stay (all by default).
    """
    size = state.embed.shape[1]
    mean_count = codes.shape[0] / size

    def one_level(embed, sums, counts, pool, x, index, key):
        hits = jax.nn.one_hot(index, size)  # [M, N]
        counts = decay * counts + (1 - decay) * hits.sum(0)
        sums = decay * sums + (1 - decay) * jnp.einsum("mn,md->nd", hits, x, precision=HIGHEST)
        dead = counts < restart_below * mean_count
        fresh = pool[jax.random.randint(key, (size,), 0, pool.shape[0])]
        counts = jnp.where(dead, mean_count, counts)
        sums = jnp.where(dead[:, None], fresh * mean_count, sums)
        alive = (counts > 1e-20)[:, None]  # without restarts a count can fall to nothing
        return jnp.where(alive, sums / jnp.where(alive, counts[:, None], 1), embed), sums, counts

    pool = push_pool(state.pool, inputs)
    keys = jax.random.split(rng, state.embed.shape[0])
    xs = jax.lax.stop_gradient(jnp.swapaxes(inputs, 0, 1))
    before = state.embed, state.sums, state.counts
    after = jax.vmap(one_level)(*before, pool, xs, codes.T, keys)
    if used is not None:
        after = (
            jnp.where(used.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
            for old, new in zip(before, after, strict=True)
        )
    return CodebookState(*after, pool)


def push_pool(pool: jax.Array, inputs: jax.Array) -> jax.Array:
    """Adds inputs [M, K, D] to the pool [K, P, D] and drops the oldest."""
    inputs = jax.lax.stop_gradient(jnp.swapaxes(inputs, 0, 1))[:, : pool.shape[1]]
    return jnp.concatenate([inputs, pool[:, : pool.shape[1] - inputs.shape[1]]], axis=1)


def kmeans_codebooks(
    state: CodebookState, rng: jax.Array, vectors_per_step: int, iterations: int = 10
) -> CodebookState:
    """Codebooks by k-means on the latents in level 0's pool, each level on what those before it left."""
    size = state.embed.shape[1]
    residual, embeds, pools = state.pool[0], [], []
    for key in jax.random.split(rng, state.embed.shape[0]):
        pools.append(residual)
        start = residual[jax.random.permutation(key, residual.shape[0])[:size]]

        def iterate(_, codebook, x=residual):
            hits = jax.nn.one_hot(nearest_code(codebook, x), size)  # [P, N]
            counts = hits.sum(0)[:, None]
            means = jnp.einsum("pn,pd->nd", hits, x, precision=HIGHEST) / jnp.maximum(counts, 1)
            return jnp.where(counts > 0, means, codebook)

        codebook = jax.lax.fori_loop(0, iterations, iterate, start)
        residual = residual - codebook[nearest_code(codebook, residual)]
        embeds.append(codebook)
    embed, count = jnp.stack(embeds), vectors_per_step / size
    return CodebookState(embed, embed * count, jnp.full(state.counts.shape, count), jnp.stack(pools))


def perplexity(codes: jax.Array, size: int) -> jax.Array:
    """exp(entropy) of the use of the codes [..., K], per level: float32 [K]; at most `size`."""
    counts = jax.nn.one_hot(codes.reshape(-1, codes.shape[-1]), size).sum(0)  # [K, N]
    share = counts / counts.sum(-1, keepdims=True)
    return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12), -1))
