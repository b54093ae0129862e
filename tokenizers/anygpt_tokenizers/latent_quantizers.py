"""Quantisers of learnt latents: codebooks, with unit vectors or not, and finite scalars.

- "normalised": ViT-VQGAN's (Yu et al. 2021, arXiv 2110.04627): few dimensions, latents and codes both divided
  by their lengths, so that the nearest code is the one with the largest cosine.
- "plain": VQ-VAE's (van den Oord et al. 2017) as MaskGIT trains it (Chang et al. 2022), with a term that
  rewards sure choices and even use of the codes.
- "fsq": Finite Scalar Quantization (Mentzer et al. 2023, arXiv 2309.15505): every dimension is squashed and
  rounded to a few levels; no codebook, no terms of the loss.

Which code a latent gets is decided in float32 at the highest precision.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.image_quantizers import HIGHEST, nearest_code, unit

KINDS = ("normalised", "plain", "fsq")
SQUASHED = 1e-3  # share of the outer levels' width that FSQ's tanh stays away from their edges


class Quantised(NamedTuple):
    """What becomes of latents [..., dim].

    values [..., dim]: of the codes; gradients pass through to the latents. codes int32 [...]. terms: of the
    loss, scalars: "codebook" and "commitment", perhaps "entropy"; none of FSQ.
    """

    values: jax.Array
    codes: jax.Array
    terms: dict[str, jax.Array]


class VectorQuantizer(nn.Module):
    """The nearest rows of a codebook.

    Attributes:
      size, dim: of the codebook.
      normalised: whether latents and codes count as unit vectors.

    Distances in the terms are means over the dimensions. Sums, as ViT-VQGAN's paper can be read, pulled all
    latents of a small net onto one code before it had learnt to tell pictures apart.
    """

    size: int
    dim: int
    normalised: bool

    def setup(self):
        uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        init = nn.initializers.normal(1.0) if self.normalised else uniform
        self.codebook = self.param("codebook", init, (self.size, self.dim))

    def codes_of(self, latents: jax.Array) -> jax.Array:
        """Latents [..., dim] -> codes int32 [...]."""
        return nearest_code(self._scaled(self.codebook), self._scaled(latents))

    def values_of(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [...] -> values float32 [..., dim]."""
        return self._scaled(self.codebook)[codes]

    def __call__(self, latents: jax.Array, temperature: float = 0.0) -> Quantised:
        """For training. `temperature`: of the softmax over codes in the term "entropy"; 0 for none."""
        book, latents = self._scaled(self.codebook), self._scaled(latents.astype(jnp.float32))
        codes = nearest_code(*jax.lax.stop_gradient((book, latents)))
        chosen = book[codes]
        stop = jax.lax.stop_gradient
        terms = {
            "codebook": jnp.mean((stop(latents) - chosen) ** 2),
            "commitment": jnp.mean((latents - stop(chosen)) ** 2),
        }
        if temperature:
            terms["entropy"] = entropy_term(squared_distances(latents, book), temperature)
        return Quantised(latents + stop(chosen - latents), codes, terms)

    def _scaled(self, x: jax.Array) -> jax.Array:
        return unit(x) if self.normalised else x


class FiniteScalarQuantizer(nn.Module):
    """Each dimension of a latent rounded to one of so many values between -1 and 1. No parameters.

    A code is the number whose digits, the first the lowest, are the values' places. Attribute `levels`: how
    many values each dimension has, at least 2.
    """

    levels: Sequence[int]

    @property
    def dim(self) -> int:
        """Of the latents."""
        return len(self.levels)

    @property
    def size(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    def codes_of(self, latents: jax.Array) -> jax.Array:
        """Latents [..., dim] -> codes int32 [...]."""
        places = jnp.round(self._bounded(latents.astype(jnp.float32))).astype(jnp.int32)
        return jnp.sum((places + self._half()) * self._basis(), axis=-1)

    def values_of(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [...] -> values float32 [..., dim]."""
        digits = codes[..., None] // self._basis() % np.asarray(self.levels, np.int32)
        return (digits - self._half()) / self._half().astype(np.float32)

    def __call__(self, latents: jax.Array, temperature: float = 0.0) -> Quantised:
        """For training; there is no term, so that `temperature` has no effect."""
        del temperature
        latents = latents.astype(jnp.float32)
        bounded = self._bounded(latents) / self._half()
        codes = self.codes_of(latents)
        values = bounded + jax.lax.stop_gradient(self.values_of(codes) - bounded)
        return Quantised(values, codes, {})

    def _bounded(self, x: jax.Array) -> jax.Array:
        """Squashed so that rounding gives `levels` whole numbers: -1, 0, 1 of three, -2, -1, 0, 1 of four.

        An even number of levels has none in the middle; there, the shift keeps 0 (nearly) where it was, as in
        the paper's appendix.
        """
        levels = np.asarray(self.levels)
        half = (levels - 1) * (1 - SQUASHED) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        shift = np.tan(offset / half)
        bounded = jnp.tanh(x + shift.astype(np.float32)) * half.astype(np.float32)
        return bounded - offset.astype(np.float32)

    def _half(self) -> np.ndarray:
        return np.asarray(self.levels, np.int32) // 2

    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)


def build_quantizer(codec: Mapping[str, Any]) -> VectorQuantizer | FiniteScalarQuantizer:
    """The quantiser of a codec's configuration, as `with_quantizer` completed it."""
    quantizer = codec["quantizer"]
    if quantizer["kind"] == "fsq":
        return FiniteScalarQuantizer(tuple(quantizer["levels"]))
    return VectorQuantizer(codec["codebook_size"], quantizer["dim"], quantizer["kind"] == "normalised")


def with_quantizer(codec: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what follows from `quantizer`: FSQ's levels say how many codes there are.

    quantizer: `kind`, one of KINDS; `dim` of a codebook; `levels` of FSQ. UserError for anything else.
    """
    quantizer = codec["quantizer"]
    if quantizer["kind"] not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"config.codec.quantizer.kind is {quantizer['kind']!r}; there are {known}.")
    if quantizer["kind"] != "fsq":
        return dict(codec)
    levels = tuple(quantizer["levels"])
    if not levels or min(levels) < 2:
        raise UserError(
            f"config.codec.quantizer.levels is {levels}; FSQ needs at least one number, each 2 or more, such "
            "as (8, 8, 8, 4, 4)."
        )
    return {**codec, "codebook_size": math.prod(levels)}


def squared_distances(x: jax.Array, book: jax.Array) -> jax.Array:
    """Of x [..., D] to the rows of `book` [N, D]: [..., N]."""
    products = jnp.einsum("...d,nd->...n", x, book, precision=HIGHEST)
    return jnp.sum(x**2, axis=-1, keepdims=True) - 2 * products + jnp.sum(book**2, axis=-1)


def entropy_term(distances: jax.Array, temperature: float) -> jax.Array:
    """How unsure the choice of a code is, less how unsure it is which code is chosen; nats.

    Distances [..., N] become probabilities by a softmax. The mean entropy of a latent's is to be small, that
    of the mean over all latents large. MaskGIT's "softmax" kind.
    """
    logits = -distances.reshape(-1, distances.shape[-1]) / temperature
    shares = nn.softmax(logits)
    mean = jnp.mean(shares, axis=0)
    single = -jnp.mean(jnp.sum(shares * nn.log_softmax(logits), axis=-1))
    return single + jnp.sum(mean * jnp.log(mean + 1e-5))
