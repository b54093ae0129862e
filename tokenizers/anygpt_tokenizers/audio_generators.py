"""The codecs that audio training can train, each as pure functions of its trainable parameters."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from anygpt_tokenizers import published_programs as programs
from anygpt_tokenizers.audio_codec import AudioCodec, SeanetCodec
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec
from anygpt_tokenizers.encodec import Encodec
from anygpt_tokenizers.fresh_weights import fresh_weights, initial_params
from anygpt_tokenizers.published_codec import spec_from_config
from anygpt_tokenizers.published_seanet import PublishedSeanet, SeanetSpec, is_transposed
from anygpt_tokenizers.speechtokenizer import SpeechTokenizer

PUBLISHED = {"speechtokenizer": SpeechTokenizer, "encodec": Encodec}


class Generator(Protocol):
    """Encoder and decoder around the codebooks, which are no parameters."""

    hop_length: int

    def init(self, rng: jax.Array, frames: int) -> dict:
        """Fresh parameters; `frames` is the length of a crop."""

    def encode(self, params: dict, wave: jax.Array) -> jax.Array:
        """Waveform [B, F·hop_length] -> latents [B, F, dimension]."""

    def decode(self, params: dict, latents: jax.Array):
        """Latents -> waveform [B, F·hop_length], or what a spectral head makes it from."""

    def to_codec(self, params: dict, codebooks: jax.Array) -> Codec:
        """The codec with codebooks [K, N, D]."""


def build_generator(codec_config: dict) -> Generator:
    """By the codec's "type": "seanet" (the small codec), "speechtokenizer" or "encodec"."""
    kind = codec_config.get("type", AudioCodec.type)
    if kind == AudioCodec.type:
        return SmallGenerator(codec_config)
    if kind in PUBLISHED:
        return PublishedGenerator(codec_config, PUBLISHED[kind])
    raise UserError(f"config.codec.type is {kind!r}; there are {', '.join([AudioCodec.type, *PUBLISHED])}.")


class SmallGenerator:
    """A SeanetCodec."""

    def __init__(self, codec_config: dict):
        self.codec_config = codec_config
        self.module = SeanetCodec.from_config(codec_config)
        self.hop_length = self.module.hop_length

    def init(self, rng: jax.Array, frames: int) -> dict:
        """See `Generator`."""
        return initial_params(self.module, rng, jnp.zeros((1, frames * self.hop_length)))

    def encode(self, params: dict, wave: jax.Array) -> jax.Array:
        """See `Generator`."""
        return self.module.apply({"params": params}, wave, method="encode")

    def decode(self, params: dict, latents: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        """See `Generator`."""
        return self.module.apply({"params": params}, latents, method="decode")

    def to_codec(self, params: dict, codebooks: jax.Array) -> AudioCodec:
        """See `Generator`."""
        return AudioCodec(self.codec_config, {"model": params, "codebooks": codebooks})


class PublishedGenerator:
    """A PublishedSeanet whose convolutions are trained in weight normalisation, as the originals were."""

    def __init__(self, codec_config: dict, codec_class: type[Codec]):
        self.codec_config = {**codec_config, **dataclasses.asdict(spec_from_config(codec_config))}
        self.codec_class = codec_class
        self.spec = spec_from_config(codec_config)
        scaled = codec_config.get("normalize") or codec_config.get("chunk_length_s") is not None
        if self.spec.channels > 1 or self.spec.time_group_norm or scaled:
            raise UserError(
                "Training is for mono codecs with weight norms and without scales: config.codec must not set "
                "channels, time_group_norm, normalize or chunk_length_s."
            )
        self.module = PublishedSeanet(self.spec)
        self.hop_length = self.spec.hop_length

    def init(self, rng: jax.Array, frames: int) -> dict:
        """See `Generator`."""
        shapes = jax.eval_shape(self.module.init, rng, jnp.zeros((1, frames * self.hop_length)))["params"]
        shapes.pop("quantizer")
        params = fresh_weights(shapes, rng)
        return split_kernels(params, self.spec)

    def encode(self, params: dict, wave: jax.Array) -> jax.Array:
        """See `Generator`."""
        return programs.latents_of_crops(self.module, fold_kernels(params, self.spec), wave)

    def decode(self, params: dict, latents: jax.Array) -> jax.Array:
        """See `Generator`."""
        return programs.decode_crops(self.module, fold_kernels(params, self.spec), latents)

    def project(self, params: dict, vectors: jax.Array) -> jax.Array:
        """Level 0's vectors [..., D] -> features [..., semantic_dimension]."""
        return self.module.apply({"params": params}, vectors, method="project")

    def to_codec(self, params: dict, codebooks: jax.Array) -> Codec:
        """See `Generator`."""
        params = jax.tree.map(np.asarray, fold_kernels(params, self.spec))
        return self.codec_class(self.codec_config, {**params, "quantizer": {"embed": codebooks}})


def split_kernels(params: dict, spec: SeanetSpec) -> dict:
    """Every convolution's "kernel" as "direction" (itself) and "size" (its norms); see `fold_kernels`."""
    flat = {}
    for path, value in traverse_util.flatten_dict(params).items():
        if _is_normalised(path):
            flat[*path[:-1], "direction"] = value
            flat[*path[:-1], "size"] = _norms(value, path, spec)
        else:
            flat[path] = value
    return traverse_util.unflatten_dict(flat)


def fold_kernels(params: dict, spec: SeanetSpec) -> dict:
    """The inverse of `split_kernels`: kernel = size · direction / |direction|.

    A norm runs over all of an output channel's numbers; of a transposed convolution, over an input channel's.
    """
    flat = traverse_util.flatten_dict(params)
    folded = {path: value for path, value in flat.items() if path[-1] not in ("direction", "size")}
    for path, value in flat.items():
        if path[-1] == "direction":
            kernel = (*path[:-1], "kernel")
            folded[kernel] = value * (flat[*path[:-1], "size"] / _norms(value, kernel, spec))
    return traverse_util.unflatten_dict(folded)


def _is_normalised(path: tuple[str, ...]) -> bool:
    return path[-1] == "kernel" and path[0] != "transform"


def _norms(kernel: jax.Array, path: tuple[str, ...], spec: SeanetSpec) -> jax.Array:
    axes = (1, 2) if is_transposed(path, spec) else (0, 1)
    return jnp.sqrt(jnp.sum(kernel**2, axes, keepdims=True))
