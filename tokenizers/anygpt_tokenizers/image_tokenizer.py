"""The small image tokenizer: a picture is a grid of patches, each patch a few codes (ViT-VQGAN family).

The encoder sees one patch at a time and knows no positions (unless `encoder_mixes`): equal patches have equal codes
wherever they lie, paper is the same code everywhere, and so a language model has little to learn about where a
thing stands. What that costs in sharpness the decoder wins back, a ViT that sees all codes at once and ends in
a convolution over the borders of patches.
"""

import functools
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.codec import Codec
from anygpt_tokenizers.image_quantizers import build_quantizer
from anygpt_tokenizers.media_image import read_image, write_image

HIGHEST = jax.lax.Precision.HIGHEST
BATCH = 64  # pictures encoded or decoded at a time


class Block(nn.Module):
    """A pre-norm transformer block without biases in its projections; without attention if it has no heads."""

    dim: int
    num_heads: int
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, dim] -> [B, N, dim]."""
        dense = functools.partial(nn.Dense, use_bias=False, precision=self.precision)
        if self.num_heads:
            head_dim = self.dim // self.num_heads
            h = nn.LayerNorm(use_bias=False)(x)
            qkv = dense(3 * self.dim)(h).reshape(*x.shape[:-1], 3, self.num_heads, head_dim)
            query, key, value = (qkv[..., i, :, :] for i in range(3))
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=self.precision) * head_dim**-0.5
            mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value, precision=self.precision)
            x = x + dense(self.dim)(mixed.reshape(x.shape))
        h = nn.LayerNorm(use_bias=False)(x)
        return x + dense(self.dim)(nn.gelu(dense(3 * self.dim)(h)))


class ImageTokenizer(nn.Module):
    """Encoder, quantiser and decoder; images are float32 [B, S, S, 3], 0 for white and 1 for no light.

    Attributes:
      config: the codec's configuration: image_size S, patch_size P, encoder_dim, encoder_layers, encoder_mixes,
        decoder_dim, decoder_layers, num_heads, refine_channels, and the quantiser's fields.
    """

    config: dict

    def setup(self):
        c = self.config
        heads = c["num_heads"]
        self.grid = c["image_size"] // c["patch_size"]
        self.quantizer = build_quantizer(c)
        self.patch_in = nn.Dense(c["encoder_dim"], precision=HIGHEST)
        self.encoder_blocks = [
            Block(c["encoder_dim"], heads if c["encoder_mixes"] else 0, HIGHEST)
            for _ in range(c["encoder_layers"])
        ]
        self.encoder_norm = nn.LayerNorm()
        self.to_latent = nn.Dense(c["num_codebooks"] * self.quantizer.part_dim, precision=HIGHEST)

        self.from_latent = nn.Dense(c["decoder_dim"])
        self.positions = self.param(
            "positions", nn.initializers.normal(0.02), (self.grid**2, c["decoder_dim"])
        )
        self.decoder_blocks = [Block(c["decoder_dim"], heads) for _ in range(c["decoder_layers"])]
        self.decoder_norm = nn.LayerNorm()
        self.patch_out = nn.Dense(c["patch_size"] ** 2 // 16 * c["refine_channels"])
        self.refine = nn.Conv(2 * c["refine_channels"], (3, 3))
        self.to_pixels = nn.Conv(48, (3, 3))

    def latents(self, images: jax.Array) -> jax.Array:
        """Images [B, S, S, 3] -> latents [B, N, K·D], the N patches in reading order."""
        x = self.patch_in(_to_patches(images, self.config["patch_size"]))
        for block in self.encoder_blocks:
            x = block(x)
        return self.to_latent(self.encoder_norm(x))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, S, S, 3] -> codes int32 [B, N, K]."""
        return self.quantizer(self.latents(images))[1]

    def render(self, quantized: jax.Array) -> jax.Array:
        """Quantized latents [B, N, K·D] -> images [B, S, S, 3]."""
        x = self.from_latent(quantized) + self.positions
        for block in self.decoder_blocks:
            x = block(x)
        x = self.patch_out(self.decoder_norm(x))  # [B, N, (P/4)²·C]
        x = _from_patches(x, self.grid, self.config["patch_size"] // 4)  # [B, S/4, S/4, C]
        x = self.to_pixels(nn.gelu(self.refine(x)))  # [B, S/4, S/4, 4·4·3]
        return _from_patches(x.reshape(x.shape[0], -1, 48), self.config["image_size"] // 4, 4)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [B, N, K] -> images [B, S, S, 3]."""
        return self.render(self.quantizer.lookup(codes))

    def __call__(self, images: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """For training: images [B, S, S, 3] -> (images again, codes [B, N, K], the quantiser's loss).

        `keep` [B, K] is 0 for the codes of a picture that the decoder shall do without, else 1.
        """
        quantized, codes, loss = self.quantizer(self.latents(images))
        parts = quantized.reshape(*codes.shape, -1) * keep[:, None, :, None]
        return self.render(parts.reshape(quantized.shape)), codes, loss


class ImageCodec(Codec):
    """Pictures uint8 [B, S, S, 3] to codes int32 [B, N, K] and back, N the patches in reading order."""

    type = "vit_vq"
    kind = "image"

    def __init__(self, config: dict, params: dict):
        super().__init__(config, params)
        self.module = ImageTokenizer(self.config)
        self.image_size = self.config["image_size"]
        self.fixed_frames = (self.image_size // self.config["patch_size"]) ** 2

    @functools.cached_property
    def _encode(self):
        return jax.jit(
            lambda params, x: self.module.apply({"params": params}, from_uint8(x), method="encode")
        )

    @functools.cached_property
    def _decode(self):
        return jax.jit(
            lambda params, codes: to_uint8(self.module.apply({"params": params}, codes, method="decode"))
        )

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> int32 [B, N, K]."""
        samples = np.asarray(samples)
        if samples.dtype != np.uint8 or samples.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"expected uint8 [B, {self.image_size}, {self.image_size}, 3], got {samples.shape}"
            )
        return in_batches(functools.partial(self._encode, self.params), samples)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32 [B, N, K] -> uint8 [B, S, S, 3]; UserError for codes that are not this codec's."""
        codes = self.check_codes(codes)
        return in_batches(functools.partial(self._decode, self.params), codes)

    def encode_many(self, items: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.encode(np.stack(items))) if items else []

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """A picture file -> uint8 [S, S, 3]; MediaError if it cannot be used."""
        return read_image(path, self.image_size)

    def write(self, samples: np.ndarray, path: str | os.PathLike) -> None:
        write_image(samples, path)


def in_batches(function: Callable[[np.ndarray], jax.Array], batch: np.ndarray) -> np.ndarray:
    """Applies `function` to parts of at most BATCH rows, each padded to a power of two: few shapes to compile."""
    outputs = []
    for start in range(0, len(batch), BATCH):
        part = batch[start : start + BATCH]
        rows = 1 << (len(part) - 1).bit_length()
        padded = np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1)))
        outputs.append(np.asarray(function(padded))[: len(part)])
    return np.concatenate(outputs)


def from_uint8(images: jax.Array) -> jax.Array:
    """uint8 pictures -> what the module works on: white is 0, so that padding is paper."""
    return 1.0 - jnp.asarray(images, jnp.float32) / 255.0


def to_uint8(images: jax.Array) -> jax.Array:
    """The inverse of `from_uint8`, clipped."""
    return jnp.round(255.0 * jnp.clip(1.0 - images, 0.0, 1.0)).astype(jnp.uint8)


def _to_patches(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/size · W/size, size·size·C]."""
    b, height, width, channels = x.shape
    x = x.reshape(b, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * channels)


def _from_patches(x: jax.Array, grid: int, size: int) -> jax.Array:
    """[B, grid · grid, size·size·C] -> [B, grid·size, grid·size, C]."""
    x = x.reshape(x.shape[0], grid, grid, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], grid * size, grid * size, -1)
