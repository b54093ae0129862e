"""What a decoder's channels say of a picture, and how far that is from the picture.

A decoder's output is either "pixels", float32 [B, S, S, 3] from 0 to 1, or "logits", [B, S, S, 6]: for every
pixel the location and (softplus of it) the log scale of a logit-Laplace distribution, as of DALL-E's dVAE
(Ramesh et al. 2021, arXiv 2102.12092, appendix A.3). There, pixels are moved into [0.1, 0.9] first.
ViT-VQGAN's paper has that loss and the squared distance of one output but does not say how; here the
distribution's location, taken back to pixels, is the picture.
"""

import jax
import jax.numpy as jnp

MARGIN = 0.1  # of pixels that are moved away from 0 and 1, where the logit is infinite
# ln of the least scale, 0.018. A level of 255 is 0.013 to 0.035 in these logits; if scales could be much
# smaller, the density of pixels that are whole levels would grow without end.
LEAST_LOG_SCALE = -4.0


def pixels_of(output: jax.Array, kind: str) -> jax.Array:
    """The picture [B, S, S, 3] that a decoder's output of `kind` "pixels" or "logits" means; not clipped."""
    if kind == "pixels":
        return output
    return (jax.nn.sigmoid(output[..., :3]) - MARGIN) / (1 - 2 * MARGIN)


def logit_laplace(output: jax.Array, pixels: jax.Array) -> jax.Array:
    """Mean over pixels of the negative log density, in nats, of `pixels` under the output's distributions."""
    moved = MARGIN + (1 - 2 * MARGIN) * pixels
    location = output[..., :3]
    log_scale = LEAST_LOG_SCALE + jax.nn.softplus(output[..., 3:] - LEAST_LOG_SCALE)
    distance = jnp.abs(jnp.log(moved / (1 - moved)) - location) * jnp.exp(-log_scale)
    return jnp.mean(distance + log_scale + jnp.log(2 * moved * (1 - moved)))


def psnr(squared: jax.Array) -> jax.Array:
    """Decibels of a mean squared error of pixels from 0 to 1."""
    return -10 * jnp.log10(jnp.maximum(squared, 1e-8))
