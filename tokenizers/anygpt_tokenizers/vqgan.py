"""ViT-VQGAN and MaskGIT's VQGAN: a square picture becomes a grid of codes, one a cell, and comes back.

Both nets are an encoder, one of the quantisers of `latent_quantizers` and a decoder; which and how large says
the configuration (see configs/tokenizers/vit_vqgan.py and maskgit_vqgan.py). Pixels are float32 [B, S, S, 3]
from 0 to 1 here.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import maskgit_net, picture_losses, vit_vqgan_net
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, shapes_of_net
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.latent_quantizers import Quantised, build_quantizer, with_quantizer
from anygpt_tokenizers.media_image import read_image, write_image
from anygpt_tokenizers.meshes import OnMesh

BATCH = 16  # pictures in one call of a program; the distances to all codes take as much memory as the net
OUTPUTS = {"pixels": 3, "logits": 6}  # what a decoder's channels are: see picture_losses


class VqganNet(nn.Module):
    """Encoder, quantiser and decoder.

    Attributes:
      config: the codec's configuration, completed by `completed`.
      dtype: of products in encoder and decoder; float32 means float32 on every back end.
    """

    config: Mapping[str, Any]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        self.quantizer = build_quantizer(config)
        sizes = {"latent_dim": self.quantizer.dim, "dtype": self.dtype}
        channels = {"channels": OUTPUTS[config["output"]], "dtype": self.dtype}
        if config["net"] == "vit":
            patch = config["patch_size"]
            self.encoder = vit_vqgan_net.Encoder(patch, **config["encoder"], **sizes)
            self.decoder = vit_vqgan_net.Decoder(patch, **config["decoder"], **channels)
        else:
            names = ("filters", "multipliers", "res_blocks", "groups")
            shared = {name: config[name] for name in names}
            self.encoder = maskgit_net.Encoder(**shared, **sizes)
            self.decoder = maskgit_net.Decoder(**shared, **channels)

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels [B, S, S, 3] -> codes int32 [B, G, G]."""
        return self.quantizer.codes_of(self.encoder(pixels))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [B, G, G] -> the decoder's channels, float32 [B, S, S, 3 or 6]."""
        return self.decoder(self.quantizer.values_of(codes))

    def __call__(self, pixels: jax.Array, temperature: float = 0.0) -> tuple[jax.Array, jax.Array, Quantised]:
        """For training: (the decoder's channels, latents [B, G, G, D], what the quantiser makes of them)."""
        latents = self.encoder(pixels)
        quantised = self.quantizer(latents, temperature)
        return self.decoder(quantised.values), latents, quantised


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A codec's configuration with what follows from it; UserError if it is none that fits together."""
    if config["net"] not in ("vit", "maskgit"):
        raise UserError(f'config.codec.net is {config["net"]!r}; there are "vit" and "maskgit".')
    if config["output"] not in OUTPUTS:
        raise UserError(f'config.codec.output is {config["output"]!r}; there are "pixels" and "logits".')
    config = with_quantizer(config)
    if config["net"] == "maskgit":
        for multiplier in config["multipliers"]:
            if config["filters"] * multiplier % config["groups"]:
                raise UserError(
                    f"config.codec.filters {config['filters']} times the multiplier {multiplier} is no "
                    f"multiple of the {config['groups']} groups of the norms (config.codec.groups)."
                )
    if config["image_size"] % cell_size(config):
        raise UserError(
            f"config.codec.image_size is {config['image_size']}, no multiple of the {cell_size(config)} "
            "pixels of a code's cell."
        )
    return config


def cell_size(config: Mapping[str, Any]) -> int:
    """Pixels along the side of the square that one code stands for."""
    return config["patch_size"] if config["net"] == "vit" else 2 ** (len(config["multipliers"]) - 1)


def init_params(config: Mapping[str, Any], rng: jax.Array) -> dict:
    """Fresh parameters: {"encoder": …, "quantizer": … (not of FSQ), "decoder": …}."""
    pixels = jnp.zeros((1, config["image_size"], config["image_size"], 3))
    return initial_params(VqganNet(config), rng, pixels)


class VqganCodec(OnMesh, Codec):
    """Pictures uint8 [B, S, S, 3] to codes int32 [B, N, 1] and back, N cells in reading order.

    Attributes:
      params: of `VqganNet`.
    """

    type = "vqgan"
    kind = "image"

    def __init__(self, config: dict, params: dict):
        config = completed({"num_codebooks": 1, **config})
        super().__init__(config, params)
        self.net = VqganNet(self.config)
        self.image_size: int = config["image_size"]
        self.grid = self.image_size // cell_size(config)
        self.fixed_frames = self.grid**2

    def net_shapes(self) -> dict[str, tuple[int, ...]]:
        pixels = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32)
        return shapes_of_net(self.net, pixels)

    @functools.cached_property
    def weights(self) -> dict:
        return jax.device_put(self.params, self.sharding())

    @functools.cached_property
    def _encode(self) -> Callable:
        @jax.jit
        def encode(params, samples):
            pixels = samples.astype(jnp.float32) / 255
            codes = self.net.apply({"params": params}, pixels, method="encode")
            return codes.reshape(len(samples), -1, 1)

        return encode

    @functools.cached_property
    def _decode(self) -> Callable:
        @jax.jit
        def decode(params, codes):
            grids = codes.reshape(-1, self.grid, self.grid)
            output = self.net.apply({"params": params}, grids, method="decode")
            pixels = picture_losses.pixels_of(output, self.config["output"])
            return jnp.round(255 * jnp.clip(pixels, 0, 1)).astype(jnp.uint8)

        return decode

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> int32 [B, N, 1]; UserError for anything else."""
        samples = self.check_pixels(samples)
        return self._run(self._encode, samples)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32 [B, N, 1] -> uint8 [B, S, S, 3]; UserError for codes that are not this codec's."""
        codes = self.check_codes(codes)
        if codes.shape[1] != self.fixed_frames:
            raise UserError(f"A picture has {self.fixed_frames} frames of codes, not {codes.shape[1]}.")
        return self._run(self._decode, codes)

    def encode_many(self, items: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.encode(np.stack(items))) if items else []

    def read_file(self, path: str | os.PathLike) -> np.ndarray:
        """A picture file -> uint8 [S, S, 3]; MediaError if it cannot be used."""
        return read_image(path, self.image_size)

    def write(self, samples: np.ndarray, path: str | os.PathLike) -> None:
        write_image(samples, path)

    def _run(self, program: Callable, batch: np.ndarray) -> np.ndarray:
        """`program` on at most BATCH rows a device at a time, padded so that it sees few shapes."""
        devices = self.batch_devices
        outputs = []
        for start in range(0, max(len(batch), 1), BATCH * devices):
            part = batch[start : start + BATCH * devices]
            rows = devices * (1 << max(-(-len(part) // devices) - 1, 0).bit_length())
            padded = np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1)))
            placed = self.place(padded)
            outputs.append(np.asarray(program(self.weights, placed))[: len(part)])
        return np.concatenate(outputs)
