"""ViT-VQGAN's two transformers (Yu et al. 2021, arXiv 2110.04627): patches to latents, codes to patches.

Both are stacks of pre-norm blocks between linear layers and end in two layers with tanh between them. As in
the paper, a last linear layer takes the encoder's output down to the few dimensions of the codebook. Of the
paper's own counts of parameters (32, 91 and 599 million) only the second follows from its table of widths:
encoders of those widths have 28, 91 and 644 million here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.image_tokenizer import from_patches, to_patches
from anygpt_tokenizers.seed_layers import Block, dense, in_turn, norm


class Encoder(nn.Module):
    """Pixels to latents.

    Attributes: patch_size; num_layers, dim, num_heads, hidden_dim: of the blocks; latent_dim: of the result.
    """

    patch_size: int
    num_layers: int
    dim: int
    num_heads: int
    hidden_dim: int
    latent_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """float32 [B, S, S, 3] from 0 to 1 -> float32 [B, S/patch_size, S/patch_size, latent_dim]."""
        grid = pixels.shape[1] // self.patch_size
        x = dense(self.dim, "patches", self.dtype)(to_patches(2 * pixels - 1, self.patch_size))
        x = _transformed(self, x)
        x = dense(self.latent_dim, "to_latent", self.dtype)(_two_layers(self, x, self.dim))
        return x.reshape(-1, grid, grid, self.latent_dim).astype(jnp.float32)


class Decoder(nn.Module):
    """Values of codes to pixels; attributes as in `Encoder`, and `channels` of what comes out."""

    patch_size: int
    num_layers: int
    dim: int
    num_heads: int
    hidden_dim: int
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """float32 [B, G, G, D] -> float32 [B, G·patch_size, G·patch_size, channels]."""
        batch, grid, _, width = values.shape
        x = dense(self.dim, "from_latent", self.dtype)(values.reshape(batch, grid * grid, width))
        x = _two_layers(self, _transformed(self, x), self.patch_size**2 * self.channels)
        return from_patches(x.astype(jnp.float32), grid, self.patch_size)


def _transformed(net: Encoder | Decoder, x: jax.Array) -> jax.Array:
    """x [B, N, D] with positions added, through the blocks, normalised."""
    positions = net.param("positions", nn.initializers.normal(0.02), x.shape[1:])
    x = (x + positions).astype(jnp.float32)
    x = in_turn(net, "blocks", Block, (net.num_heads, net.hidden_dim, True, net.dtype), net.num_layers, x)
    return norm("norm_out", 1e-6)(x)


def _two_layers(net: Encoder | Decoder, x: jax.Array, features: int) -> jax.Array:
    hidden = jnp.tanh(dense(net.hidden_dim, "out_up", net.dtype)(x))
    return dense(features, "out_down", net.dtype)(hidden)
