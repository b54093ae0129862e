"""The SEED-2 tokenizer (Ge et al. 2023) as one Flax module: a picture to 32 codes, 32 codes to an embedding.

The embedding is that of unCLIP's image encoder, CLIP ViT-H/14, not normalised: what a Stable unCLIP decoder
draws a picture from. The codes hold what is seen, not its pixels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers import seed_layers
from anygpt_tokenizers.image_quantizers import nearest_code
from anygpt_tokenizers.seed_qformer import CausalQFormer
from anygpt_tokenizers.seed_vision import VisionTransformer, standardised

FLOAT32 = jnp.dtype("float32")


@dataclasses.dataclass(frozen=True)
class SeedSpec:
    """Sizes; the defaults are the published model's.

    Attributes:
      image_size, patch_size, vision_dim, vision_layers, vision_heads, vision_hidden: of the vision tower.
      num_queries, qformer_dim, qformer_layers, qformer_heads, qformer_hidden: of the Q-Former.
      codebook_size, code_dim: of the codebook.
      head_layers, head_heads, head_hidden: of the blocks after the codes; they have the Q-Former's width.
      down_dims: of the linear maps after those, per token; all tokens together become the embedding.
      reverse_layers: instead of `down_dims`, layers of a Reverse-Q-Former (SEED's training code has it, the
        published weights haven't): one learnt query reads the tokens and becomes the embedding. 0: none.
      embed_dim: width of the embedding that comes out.
    """

    image_size: int = 224
    patch_size: int = 14
    vision_dim: int = 1408
    vision_layers: int = 39
    vision_heads: int = 16
    vision_hidden: int = 6144
    num_queries: int = 32
    qformer_dim: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_hidden: int = 3072
    codebook_size: int = 8192
    code_dim: int = 32
    head_layers: int = 4
    head_heads: int = 12
    head_hidden: int = 3072
    down_dims: tuple[int, ...] = (256, 128, 32)
    reverse_layers: int = 0
    embed_dim: int = 1024


class DecodeHead(nn.Module):
    """Rows of the codebook to one embedding."""

    spec: SeedSpec

    @nn.compact
    def __call__(self, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [B, num_queries, code_dim] -> the embedding float32 [B, embed_dim], and `decoded`.

        `decoded` float32 [B, num_queries, qformer_dim] is what the blocks begin with; training compares what
        other blocks make of it with the Q-Former's output.
        """
        spec = self.spec
        x = nn.tanh(seed_layers.dense(spec.code_dim, "decode_in", FLOAT32)(chosen))
        decoded = seed_layers.dense(spec.qformer_dim, "decode_out", FLOAT32)(x)
        x = decoded + self.param("positions", nn.initializers.normal(0.02), decoded.shape[1:])
        settings = spec.head_heads, spec.head_hidden, True, FLOAT32
        x = seed_layers.in_turn(self, "blocks", seed_layers.Block, settings, spec.head_layers, x)
        if spec.reverse_layers:
            sizes = (spec.qformer_dim, spec.reverse_layers, spec.qformer_heads, spec.qformer_hidden)
            x = CausalQFormer(1, *sizes, FLOAT32, name="reverse")(x)
        else:
            for index, dim in enumerate(spec.down_dims):
                x = seed_layers.dense(dim, f"down_{index}", FLOAT32, bias=False)(nn.relu(x) if index else x)
        return seed_layers.dense(spec.embed_dim, "project", FLOAT32)(x.reshape(len(x), -1)), decoded


class PictureReader(nn.Module):
    """Vision tower and Q-Former.

    Attributes:
      spec: sizes.
      dtype: of the matrix products of vision tower and Q-Former. From their output on all is float32.
    """

    spec: SeedSpec
    dtype: jnp.dtype = FLOAT32

    def setup(self):
        spec = self.spec
        self.vision = VisionTransformer(
            spec.patch_size,
            spec.vision_dim,
            spec.vision_layers,
            spec.vision_heads,
            spec.vision_hidden,
            self.dtype,
        )
        self.vision_norm = seed_layers.norm(None, 1e-5)
        self.qformer = CausalQFormer(
            spec.num_queries,
            spec.qformer_dim,
            spec.qformer_layers,
            spec.qformer_heads,
            spec.qformer_hidden,
            self.dtype,
        )

    def features(self, pixels: jax.Array) -> jax.Array:
        """uint8 [B, S, S, 3] -> what the Q-Former reads, float32 [B, 1 + (S / patch_size)², vision_dim]."""
        return self.vision_norm(self.vision(standardised(pixels)))

    def queries(self, pixels: jax.Array) -> jax.Array:
        """uint8 [B, S, S, 3] -> the Q-Former's output, float32 [B, num_queries, qformer_dim]."""
        return self.qformer(self.features(pixels))


class SeedNet(PictureReader):
    """Vision tower, Q-Former, codebook and decode head."""

    def setup(self):
        super().setup()
        spec = self.spec
        self.encode_in = seed_layers.dense(spec.qformer_dim, None, FLOAT32)
        self.encode_out = seed_layers.dense(spec.code_dim, None, FLOAT32)
        scale = nn.initializers.uniform(2 / spec.codebook_size)

        def centred(*args):
            return scale(*args) - 1 / spec.codebook_size

        self.codebook = self.param("codebook", centred, (spec.codebook_size, spec.code_dim))
        self.head = DecodeHead(spec)

    def latents(self, pixels: jax.Array) -> jax.Array:
        """uint8 [B, S, S, 3] -> what is quantised, float32 [B, num_queries, code_dim]."""
        return self.latents_of(self.queries(pixels))

    def latents_of(self, queries: jax.Array) -> jax.Array:
        """The Q-Former's output float32 [B, num_queries, qformer_dim] -> what is quantised."""
        return self.encode_out(nn.tanh(self.encode_in(queries)))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """uint8 [B, S, S, 3] -> codes int32 [B, num_queries]: the codebook's nearest rows, in float32."""
        return nearest_code(self.codebook, self.latents(pixels))

    def embed(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [B, num_queries] -> float32 [B, embed_dim]."""
        return self.head(self.codebook[codes])[0]

    def decoded(self, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rows of the codebook float32 [B, num_queries, code_dim] -> what `DecodeHead` returns."""
        return self.head(chosen)

    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """All of it, which initialisation needs: (codes, their embedding)."""
        codes = self.encode(pixels)
        return codes, self.embed(codes)
