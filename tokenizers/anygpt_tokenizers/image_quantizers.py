"""From latents to codes and back, for pictures: two quantisers that do not collapse when trained from scratch.

Both cut a latent [..., K·D] into K parts and give each part one code of `codebook_size`; both have the methods
`__call__(latents) -> (quantized, codes, loss)` and `lookup(codes) -> quantized`, gradients passing straight through.
A full-width VQ collapses at this scale to a dozen codes, which is why there is none.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


class FiniteScalarQuantizer(nn.Module):
    """FSQ (Mentzer et al., 2023, arXiv 2309.15505): every number of a part is rounded to one of a few levels.

    There is nothing to learn and no loss. Attributes:
      num_codebooks: parts K.
      levels: levels of each number of a part, such as (8, 8, 8) for 512 codes.
    """

    num_codebooks: int
    levels: Sequence[int]

    @property
    def part_dim(self) -> int:
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Latents [..., K·D] -> (quantized [..., K·D] in [-1, 1], codes int32 [..., K], loss 0)."""
        parts = latents.reshape(*latents.shape[:-1], self.num_codebooks, self.part_dim)
        steps = jnp.asarray(self.levels, jnp.float32) - 1
        # 0 .. steps; the tanh keeps every level, the outermost too, within reach.
        position = (jnp.tanh(parts) + 1) / 2 * (steps + 0.998) - 0.499
        digits = jax.lax.stop_gradient(jnp.round(position))
        rounded = position + jax.lax.stop_gradient(digits - position)
        codes = jnp.sum(digits.astype(jnp.int32) * self._weights(), axis=-1)
        return (2 * rounded / steps - 1).reshape(latents.shape), codes, jnp.zeros(())

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes [..., K] -> quantized [..., K·D]."""
        digits = codes[..., None] // self._weights() % jnp.asarray(self.levels)
        values = 2 * digits / (jnp.asarray(self.levels, jnp.float32) - 1) - 1
        return values.reshape(*codes.shape[:-1], -1)

    def _weights(self) -> jax.Array:
        """The place value of each digit, the first the most significant."""
        return jnp.asarray([math.prod(self.levels[i + 1 :]) for i in range(len(self.levels))], jnp.int32)


class NormalizedVectorQuantizer(nn.Module):
    """VQ by cosine in few dimensions (ViT-VQGAN: Yu et al., 2021, arXiv 2110.04627), one learnt codebook a part.

    Attributes:
      num_codebooks: parts K.
      codebook_size: codes of a part.
      part_dim: numbers of a part; 4 to 16.
      commitment: weight of the pull of latents to codes, relative to that of codes to latents.
    """

    num_codebooks: int
    codebook_size: int
    part_dim: int = 8
    commitment: float = 0.25

    def setup(self):
        shape = (self.num_codebooks, self.codebook_size, self.part_dim)
        self.codebooks = self.param("codebooks", nn.initializers.normal(1.0), shape)

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Latents [..., K·D] -> (quantized [..., K·D] of unit parts, codes int32 [..., K], loss)."""
        parts = _unit(latents.reshape(*latents.shape[:-1], self.num_codebooks, self.part_dim))
        similarity = jnp.einsum("...kd,knd->...kn", parts, _unit(self.codebooks), precision=HIGHEST)
        codes = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
        chosen = self.lookup(codes).reshape(parts.shape)
        stop = jax.lax.stop_gradient
        loss = jnp.mean((stop(parts) - chosen) ** 2) + self.commitment * jnp.mean((parts - stop(chosen)) ** 2)
        return (parts + stop(chosen - parts)).reshape(latents.shape), codes, loss

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes [..., K] -> quantized [..., K·D]."""
        chosen = _unit(self.codebooks)[jnp.arange(self.num_codebooks), codes]
        return chosen.reshape(*codes.shape[:-1], -1)


def build_quantizer(config: dict) -> FiniteScalarQuantizer | NormalizedVectorQuantizer:
    """The quantiser of a codec's configuration: {"quantizer": "fsq", "levels"} or {"quantizer": "vq", "part_dim"}."""
    if config["quantizer"] == "fsq":
        return FiniteScalarQuantizer(config["num_codebooks"], tuple(config["levels"]))
    return NormalizedVectorQuantizer(config["num_codebooks"], config["codebook_size"], config["part_dim"])


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)
