"""EVA-CLIP ViT-g/14 (Fang et al. 2022), as BLIP-2 and SEED use it: 39 of its 40 blocks, no final norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers import seed_layers
from anygpt_tokenizers.image_tokenizer import to_patches

# CLIP's statistics of RGB.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class VisionTransformer(nn.Module):
    """Pictures to a feature per patch, after one for the whole picture.

    Attributes:
      patch_size: pixels along a patch's side.
      dim, num_layers, num_heads, hidden_dim: of the transformer.
      dtype: of the matrix products.
    """

    patch_size: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Standardised images float32 [B, S, S, 3] -> float32 [B, 1 + (S / patch_size)², dim]."""
        patches = to_patches(images, self.patch_size)  # [B, N, P·P·3]
        x = seed_layers.dense(self.dim, "patch", self.dtype)(patches).astype(jnp.float32)
        normal = nn.initializers.normal(0.02)
        first = self.param("class_token", normal, (self.dim,))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.dim)), x], axis=1)
        x = x + self.param("positions", normal, x.shape[1:])
        settings = self.num_heads, self.hidden_dim, False, self.dtype
        return seed_layers.in_turn(self, "blocks", seed_layers.Block, settings, self.num_layers, x)


def standardised(pixels: jax.Array) -> jax.Array:
    """uint8 [B, S, S, 3] -> float32 with CLIP's mean and spread of each channel."""
    return (pixels.astype(jnp.float32) / 255.0 - jnp.asarray(MEAN)) / jnp.asarray(STD)
