"""The small image tokenizer: a grid of patches, each a code for its tint and a code for its form.

A patch of paper with ink on it is nearly (how much ink lies on each pixel) × (what light the ink swallows).
The form code names the first, the tint code the second. So a shape has the same form codes in every colour, a
colour the same tint code in every shape, and paper is always code 0: a language model can draw a combination
of colour and shape that it has never seen. The encoder looks at one patch at a time and knows no positions.
What a form code alone leaves blurred, the decoder sharpens, a ViT that sees the forms of all patches at once
(of the ViT-VQGAN family: Yu et al., 2021, arXiv 2110.04627).

Images are float32 [B, S, S, 3] of swallowed light here: 0 is white, 1 is none of a channel's light left.
"""

import functools
import math
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, in_batches, shapes_of_net
from anygpt_tokenizers.image_quantizers import HIGHEST, nearest_code, unit
from anygpt_tokenizers.media_image import read_image, write_image

BATCH = 64  # pictures encoded or decoded at a time
PAPER = 0.004  # mean ink below which a patch is paper: one level of 255
PAPER_CODE = 0
TINT, FORM = 0, 1  # the order of a patch's two codes
EDGE_DIM = 4  # numbers in a form's latent that say how its edges run
POLE = 16.0  # the last number of every form's latent, before it gets length 1


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


class FormEncoder(nn.Module):
    """Ink of one patch to a point on the unit sphere, near the pole if there is little ink.

    Its coordinates are principal components with a small correction that is learnt, the directions of edges,
    and a constant. By squared differences of pixels a small square is as near to a circle as to itself one
    pixel aside; edges, whose directions no shift changes, keep their codes apart. The constant lets length
    count (how much ink) although latents and codes are l2-normalised, as in ViT-VQGAN.

    Attributes:
      dim: principal components. hidden_dim: of the correction. edge_weight: of the edges' directions.
    """

    dim: int
    hidden_dim: int
    edge_weight: float

    @nn.compact
    def __call__(self, forms: jax.Array) -> jax.Array:
        """Forms [B, N, P·P] -> latents [B, N, latent_dim(dim)]; no biases, so that paper is the pole."""
        basis = self.param("basis", nn.initializers.lecun_normal(), (forms.shape[-1], self.dim))
        linear = jnp.einsum("bnp,pd->bnd", forms, basis, precision=HIGHEST)
        h = nn.gelu(nn.Dense(self.hidden_dim, use_bias=False, precision=HIGHEST)(forms))
        zeros = nn.initializers.zeros
        content = linear + nn.Dense(self.dim, use_bias=False, precision=HIGHEST, kernel_init=zeros)(h)
        return on_sphere(content, self.edge_weight * edge_directions(forms))


class FormDecoder(nn.Module):
    """Codes of forms to ink: each code's own picture, and a correction from the forms of all patches.

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
        """Quantised latents [B, N, D], of length 1 -> ink [B, S, S], not clipped."""
        # Nearly the principal components and edges again; the pole's coordinate follows from the others.
        latents = POLE * latents[..., :-1]
        pixels = self.patch_size**2
        basis = self.param("basis", nn.initializers.lecun_normal(), (pixels, latents.shape[-1]))
        blurred = from_patches(jnp.einsum("bnd,pd->bnp", latents, basis), self.grid, self.patch_size)

        positions = self.param("positions", nn.initializers.normal(0.02), (self.grid**2, self.dim))
        x = nn.Dense(self.dim)(latents) + positions
        for _ in range(self.num_layers):
            x = Block(self.num_heads)(x)
        cells = self.patch_size // 4
        x = nn.Dense(cells**2 * self.channels)(nn.LayerNorm()(x))  # [B, N, cells²·C]
        x = from_patches(x, self.grid, cells)  # [B, S/4, S/4, C]
        x = nn.Conv(2 * self.channels, (3, 3))(nn.gelu(x))
        x = nn.Conv(16, (3, 3), kernel_init=nn.initializers.zeros)(nn.gelu(x))
        sharpened = from_patches(x.reshape(x.shape[0], -1, 16), self.grid * cells, 4)
        return (blurred + sharpened)[..., 0]


class FormTokenizer(nn.Module):
    """Encoder, codebook and decoder of forms; code 0 is paper.

    Attributes:
      config: the codec's configuration; see configs/tokenizers/image_small.py.
    """

    config: dict

    def setup(self):
        c = self.config
        self.encoder = FormEncoder(c["form_dim"], c["hidden_dim"], c["edge_weight"])
        names = ("patch_size", "dim", "num_layers", "num_heads", "channels")
        self.decoder = FormDecoder(c["image_size"] // c["patch_size"], **{name: c[name] for name in names})
        shape = (c["codebook_size"], latent_dim(c["form_dim"]))
        self.book = self.param("book", nn.initializers.normal(1.0), shape)

    def encode(self, forms: jax.Array) -> jax.Array:
        """Forms [B, N, P·P] -> codes int32 [B, N]."""
        return nearest_code(self._book(), self.encoder(forms))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [B, N] -> ink [B, S, S], not clipped."""
        return self.decoder(self._book()[codes])

    def __call__(self, forms: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For training: forms [B, N, P·P] -> (ink [B, S, S], distance of latents and codes).

        The reconstruction moves both, the code as it is and the latent as if it were the code.
        """
        latents = self.encoder(forms)
        chosen = self._book()[nearest_code(self._book(), latents)]
        stop = jax.lax.stop_gradient
        distance = jnp.mean((stop(latents) - chosen) ** 2) + 0.25 * jnp.mean((latents - stop(chosen)) ** 2)
        return self.decoder(chosen + latents - stop(latents)), distance

    def _book(self) -> jax.Array:
        """The codes, each of length 1; paper is the pole."""
        pole = jnp.zeros(self.book.shape[-1]).at[-1].set(1.0)
        return unit(self.book.at[PAPER_CODE].set(pole))


def latent_dim(form_dim: int) -> int:
    """Length of a form's latent: principal components, edges, the pole."""
    return form_dim + EDGE_DIM + 1


def on_sphere(content: jax.Array, edges: jax.Array) -> jax.Array:
    """Content [..., D] and edges [..., EDGE_DIM] -> [..., D + EDGE_DIM + 1] of length 1."""
    pole = jnp.full((*content.shape[:-1], 1), POLE)
    return unit(jnp.concatenate([content, edges, pole], axis=-1))


def split_patches(images: jax.Array, patch_size: int) -> tuple[jax.Array, jax.Array]:
    """Images [B, S, S, 3] -> tints [B, N, 3] and forms [B, N, P·P] of the N patches in reading order.

    The form is the ink of each pixel: the light it swallows in the channel where it swallows most. The tint
    is the light that the patch swallows in the channels, scaled to length 1; zeros for paper.
    """
    patches = to_patches(images, patch_size).reshape(images.shape[0], -1, patch_size**2, 3)
    forms = jnp.max(patches, axis=-1)
    swallowed = jnp.mean(patches, axis=-2)
    paper = jnp.max(swallowed, axis=-1, keepdims=True) < PAPER
    return jnp.where(paper, 0.0, unit(swallowed)), jnp.where(paper, 0.0, forms)


def edge_directions(forms: jax.Array) -> jax.Array:
    """In which directions the edges in a patch run, wherever they lie: [..., P·P] -> [..., EDGE_DIM].

    The sums over the patch of |g| cos 2θ, |g| sin 2θ, |g| cos 4θ and |g| sin 4θ of the gradient g at angle θ,
    over the square root of the sum of |g|. Paper has zeros.
    """
    side = math.isqrt(forms.shape[-1])
    ink = forms.reshape(*forms.shape[:-1], side, side)
    falling = ink[..., 1:, 1:] - ink[..., :-1, :-1]
    rising = ink[..., :-1, 1:] - ink[..., 1:, :-1]
    across, down = (falling + rising) / 2, (falling - rising) / 2
    squared = across**2 + down**2
    cos2, sin2 = (across**2 - down**2) / (squared + 1e-6), 2 * across * down / (squared + 1e-6)
    parts = jnp.stack([cos2, sin2, cos2**2 - sin2**2, 2 * cos2 * sin2], axis=-1)
    size = jnp.sqrt(squared + 1e-12)
    edges = jnp.sum(size[..., None] * parts, axis=(-3, -2))
    return edges / jnp.sqrt(jnp.sum(size, axis=(-2, -1)) + 1e-3)[..., None]


class ImageCodec(Codec):
    """Pictures uint8 [B, S, S, 3] to codes int32 [B, N, 2] (tint, form) and back, N patches in reading order.

    Params: {"tints": [K, 3], "forms": of FormTokenizer}.
    """

    type = "vit_vq"
    kind = "image"

    def __init__(self, config: dict, params: dict):
        super().__init__(config, params)
        self.module = FormTokenizer(self.config)
        self.image_size = self.config["image_size"]
        self.patch_size = self.config["patch_size"]
        self.grid = self.image_size // self.patch_size
        self.fixed_frames = self.grid**2

    def net_shapes(self) -> dict[str, tuple[int, ...]]:
        forms = jax.ShapeDtypeStruct((1, self.fixed_frames, self.patch_size**2), jnp.float32)
        return shapes_of_net(self.module, forms, prefix="forms/") | {"tints": (self.codebook_size, 3)}

    @functools.cached_property
    def _encode(self):
        @jax.jit
        def encode(params, samples):
            tints, forms = split_patches(from_uint8(samples), self.patch_size)
            form_codes = self.module.apply({"params": params["forms"]}, forms, method="encode")
            return jnp.stack([nearest_code(params["tints"], tints), form_codes], axis=-1)

        return encode

    @functools.cached_property
    def _decode(self):
        @jax.jit
        def decode(params, codes):
            ink = self.module.apply({"params": params["forms"]}, codes[..., FORM], method="decode")
            tints = params["tints"][codes[..., TINT]]
            tints /= jnp.maximum(jnp.max(tints, axis=-1, keepdims=True), PAPER)
            tints = jnp.tile(tints, (1, 1, self.patch_size**2))
            tints = from_patches(tints, self.grid, self.patch_size)  # [B, S, S, 3]
            return to_uint8(jnp.clip(ink, 0.0, 1.0)[..., None] * tints)

        return decode

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> int32 [B, N, 2]; UserError for anything else."""
        samples = self.check_pixels(samples)
        return in_batches(functools.partial(self._encode, self.params), samples, BATCH)

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
