"""The small image tokenizer: a grid of patches, each a code for its tint and a code for its form.

A patch of paper with ink on it is nearly (how much ink lies on each pixel) × (what light the ink swallows).
The form code names the first, the tint code the second. So a shape has the same form codes in every colour, a
colour the same tint code in every shape, and paper is always code 0: a language model can draw a
combination of colour and shape that it has never seen. The encoder looks at one patch at a time and knows no
positions. What a codebook of forms alone leaves blurred, the decoder sharpens, a ViT that sees the forms of
all patches at once (of the ViT-VQGAN family: Yu et al., 2021, arXiv 2110.04627).

Images are float32 [B, S, S, 3] of swallowed light here: 0 is white, 1 is none of a channel's light left.
"""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, in_batches
from anygpt_tokenizers.image_quantizers import HIGHEST, nearest_code
from anygpt_tokenizers.media_image import read_image, write_image

BATCH = 64  # pictures encoded or decoded at a time
PAPER = 0.004  # mean ink below which a patch is paper: one level of 255
TINT, FORM = 0, 1  # the order of a patch's two codes


class Block(nn.Module):
    """A pre-norm transformer block; its projections have no biases."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        dim = x.shape[-1]
        dense = functools.partial(nn.Dense, use_bias=False)
        h = nn.LayerNorm(use_bias=False)(x)
        qkv = dense(3 * dim)(h).reshape(*x.shape[:-1], 3, self.num_heads, dim // self.num_heads)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        x = x + dense(dim)(mixed.reshape(x.shape))
        h = nn.LayerNorm(use_bias=False)(x)
        return x + dense(dim)(nn.gelu(dense(3 * dim)(h)))


class FormDecoder(nn.Module):
    """Sharpens ink: a correction of what the codebook of forms says, from the forms of all patches.

    Attributes:
      grid: patches along a side. patch_size: pixels along a patch's side, a multiple of 4.
      dim, num_layers, num_heads: of the transformer. channels: of the convolution across patches' borders.
    """

    grid: int
    patch_size: int
    dim: int
    num_layers: int
    num_heads: int
    channels: int

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Latents of forms [B, N, D] -> corrections of ink [B, S, S]."""
        positions = self.param("positions", nn.initializers.normal(0.02), (self.grid**2, self.dim))
        x = nn.Dense(self.dim)(latents) + positions
        for _ in range(self.num_layers):
            x = Block(self.num_heads)(x)
        cells = self.patch_size // 4
        x = nn.Dense(cells**2 * self.channels)(nn.LayerNorm()(x))  # [B, N, cells²·C]
        x = from_patches(x, self.grid, cells)  # [B, S/4, S/4, C]
        x = nn.Conv(2 * self.channels, (3, 3))(nn.gelu(x))
        x = nn.Conv(16, (3, 3), kernel_init=nn.initializers.zeros)(nn.gelu(x))
        return from_patches(x.reshape(x.shape[0], -1, 16), self.grid * cells, 4)[..., 0]


def split_patches(images: jax.Array, patch_size: int) -> tuple[jax.Array, jax.Array]:
    """Images [B, S, S, 3] -> tints [B, N, 3] and forms [B, N, P·P] of the N patches in reading order.

    The form is the ink of each pixel: the light it swallows in the channel where it swallows most. The tint
    is the light that the patch swallows in each channel, relative to the most; zeros for paper.
    """
    patches = to_patches(images, patch_size).reshape(images.shape[0], -1, patch_size**2, 3)
    forms = jnp.max(patches, axis=-1)
    swallowed = jnp.mean(patches, axis=-2)
    most = jnp.max(swallowed, axis=-1, keepdims=True)
    paper = most < PAPER
    tints = jnp.where(paper, 0.0, swallowed / jnp.maximum(most, PAPER))
    return tints, jnp.where(paper, 0.0, forms)


def encode_images(books: dict, images: jax.Array, patch_size: int) -> jax.Array:
    """Images [B, S, S, 3] -> codes int32 [B, N, 2]; `books`: see ImageCodec."""
    tints, forms = split_patches(images, patch_size)
    latents = jnp.einsum("bnp,pd->bnd", forms, books["form_basis"], precision=HIGHEST)
    return jnp.stack([nearest_code(books["tints"], tints), nearest_code(books["forms"], latents)], axis=-1)


def decode_ink(decoder: FormDecoder, params: dict, books: dict, form_codes: jax.Array) -> jax.Array:
    """Form codes [B, N] -> ink [B, S, S], not clipped."""
    latents = books["forms"][form_codes]
    blurred = from_patches(latents @ books["form_basis"].T, decoder.grid, decoder.patch_size)[..., 0]
    return blurred + decoder.apply({"params": params}, latents)


def decode_images(decoder: FormDecoder, params: dict, books: dict, codes: jax.Array) -> jax.Array:
    """Codes int32 [B, N, 2] -> images [B, S, S, 3]."""
    ink = jnp.clip(decode_ink(decoder, params, books, codes[..., FORM]), 0.0, 1.0)
    tints = books["tints"][codes[..., TINT]]
    size = decoder.patch_size
    spread = from_patches(jnp.tile(tints, (1, 1, size**2)), decoder.grid, size)
    return ink[..., None] * spread


class ImageCodec(Codec):
    """Pictures uint8 [B, S, S, 3] to codes int32 [B, N, 2] (tint, form) and back, N patches in reading order.

    Params: {"books": {"tints": [K, 3], "forms": [K, D], "form_basis": [P·P, D]}, "decoder": of FormDecoder}.
    """

    type = "vit_vq"
    kind = "image"

    def __init__(self, config: dict, params: dict):
        super().__init__(config, params)
        self.decoder = build_decoder(self.config)
        self.image_size = self.config["image_size"]
        self.fixed_frames = self.decoder.grid**2

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda books, x: encode_images(books, from_uint8(x), self.decoder.patch_size))

    @functools.cached_property
    def _decode(self):
        return jax.jit(
            lambda p, codes: to_uint8(decode_images(self.decoder, p["decoder"], p["books"], codes))
        )

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> int32 [B, N, 2]."""
        samples = np.asarray(samples)
        if samples.dtype != np.uint8 or samples.shape[1:] != (self.image_size, self.image_size, 3):
            wanted = f"uint8 [B, {self.image_size}, {self.image_size}, 3]"
            raise ValueError(f"expected {wanted}, got {samples.dtype} {samples.shape}")
        return in_batches(functools.partial(self._encode, self.params["books"]), samples, BATCH)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32 [B, N, 2] -> uint8 [B, S, S, 3]; UserError for codes that are not this codec's."""
        codes = self.check_codes(codes)
        if codes.shape[1] != self.fixed_frames:
            raise UserError(f"A picture has {self.fixed_frames} frames of codes, not {codes.shape[1]}.")
        return in_batches(functools.partial(self._decode, self.params), codes, BATCH)

    def encode_many(self, items: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.encode(np.stack(items))) if items else []

    def read_file(self, path: str | os.PathLike) -> np.ndarray:
        """A picture file -> uint8 [S, S, 3]; MediaError if it cannot be used."""
        return read_image(path, self.image_size)

    def write(self, samples: np.ndarray, path: str | os.PathLike) -> None:
        write_image(samples, path)


def build_decoder(config: dict) -> FormDecoder:
    """The decoder of a codec's configuration."""
    names = ("patch_size", "dim", "num_layers", "num_heads", "channels")
    return FormDecoder(config["image_size"] // config["patch_size"], **{name: config[name] for name in names})


def from_uint8(images: jax.Array) -> jax.Array:
    """uint8 pictures -> swallowed light: white is 0, so that padding is paper."""
    return 1.0 - jnp.asarray(images, jnp.float32) / 255.0


def to_uint8(images: jax.Array) -> jax.Array:
    """The inverse of `from_uint8`."""
    return jnp.round(255.0 * (1.0 - images)).astype(jnp.uint8)


def to_patches(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/size · W/size, size·size·C]."""
    b, height, width, channels = x.shape
    x = x.reshape(b, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * channels)


def from_patches(x: jax.Array, grid: int, size: int) -> jax.Array:
    """[B, grid · grid, size·size·C] -> [B, grid·size, grid·size, C]."""
    x = x.reshape(x.shape[0], grid, grid, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], grid * size, grid * size, -1)
