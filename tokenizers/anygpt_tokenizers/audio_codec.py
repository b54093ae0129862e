"""The small audio codec: SEANet encoder, residual vector quantiser, SEANet decoder.

Both ends can work on the waveform itself, as EnCodec does, or on a short-time spectrum: `front` "stft" lets
the encoder start from log-magnitudes, and `head` "istft" lets the decoder end in magnitudes and instantaneous
frequencies that an inverse STFT turns into sound (after Vocos, Siuzdak 2023). On a CPU the spectral ends
train some ten times faster, because no layer runs at the sample rate.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import residual_vq, spectral
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import in_batches, shapes_of_net
from anygpt_tokenizers.field_kinds import check_kind
from anygpt_tokenizers.seanet import SeanetDecoder, SeanetEncoder
from anygpt_tokenizers.sound_codec import SoundCodec, check_finite

HIGHEST = jax.lax.Precision.HIGHEST
CONTEXT = 8  # frames of either side that can influence a code: the receptive field, rounded up
BUCKET = 25  # lengths are padded to a multiple of this many frames, so that few shapes are compiled
MAX_LEVEL = 8.0  # of log1p(magnitude / floor) at the inverse-STFT head
CHUNK = 750  # frames encoded at a time


class SeanetCodec(nn.Module):
    """Encoder and decoder around the quantiser.

    Attributes:
      front: "waveform" or "stft"; head: "waveform" or "istft".
      n_fft, stft_hop: of the spectral ends.
      encoder_filters, encoder_strides, decoder_filters, decoder_strides: see `seanet`.
      dimension, residual_layers: see `seanet`.
      floor: amplitude (1 = full scale) below which the spectral ends tell nothing apart.
      refinements: Griffin-Lim iterations after the inverse-STFT head.
    """

    front: str
    head: str
    n_fft: int
    stft_hop: int
    encoder_filters: int
    encoder_strides: Sequence[int]
    decoder_filters: int
    decoder_strides: Sequence[int]
    dimension: int
    residual_layers: int
    floor: float
    refinements: int

    @classmethod
    def from_config(cls, config: dict) -> "SeanetCodec":
        """Takes the module's fields out of a codec's configuration; UserError for an unusable one."""
        for name, known in (("front", ("waveform", "stft")), ("head", ("waveform", "istft"))):
            if config[name] not in known:
                raise UserError(f"{name} is {config[name]!r}; there are {' and '.join(known)}.")
        kinds = {
            name: f.type for name, f in cls.__dataclass_fields__.items() if name not in ("parent", "name")
        }
        values = {name: config[name] for name in kinds if name in config}
        for name, value in values.items():
            check_kind(name, value, kinds[name], zero=name in ("residual_layers", "refinements"))
        if values["floor"] <= 0:
            raise UserError(f"floor is {values['floor']!r}; it must be above 0.")
        return cls(**{name: tuple(v) if isinstance(v, list | tuple) else v for name, v in values.items()})

    @property
    def hop_length(self) -> int:
        """Samples per frame of codes."""
        return math.prod(self.encoder_strides) * (self.stft_hop if self.front == "stft" else 1)

    def setup(self):
        bins = self.n_fft // 2 + 1
        self.encoder = SeanetEncoder(
            self.encoder_filters,
            self.encoder_strides,
            self.dimension,
            self.residual_layers,
            HIGHEST,
        )
        self.decoder = SeanetDecoder(
            self.decoder_filters,
            self.decoder_strides,
            3 * bins if self.head == "istft" else 1,
            self.residual_layers,
        )

    def encode(self, wave: jax.Array) -> jax.Array:
        """Waveform [B, F·hop_length] -> latents [B, F, dimension]."""
        if self.front == "waveform":
            return self.encoder(wave[..., None])
        magnitude = jnp.abs(spectral.stft(wave, self.n_fft, self.stft_hop))
        return self.encoder(jnp.log1p(magnitude / self.floor))

    def decode(self, latents: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Latents [B, F, dimension] -> waveform [B, F·hop_length], or what the head "istft" makes it from.

        That is (magnitudes [B, F', bins], unit vectors [B, F', bins, 2] of the phase advances), with F'
        frames of `stft_hop` samples.
        """
        x = self.decoder(latents)
        if self.head == "waveform":
            return x[..., 0]
        bins = self.n_fft // 2 + 1
        direction = x[..., bins:].reshape(*x.shape[:-1], bins, 2)
        norm = jnp.sqrt(jnp.sum(direction**2, -1, keepdims=True) + 1e-6)
        # The level is log1p(magnitude / floor); an untrained head is nearly silent.
        level = jnp.minimum(nn.softplus(2 * x[..., :bins] - 1), MAX_LEVEL)
        return self.floor * jnp.expm1(level), direction / norm

    def synthesize(self, latents: jax.Array, frames: jax.Array | int) -> jax.Array:
        """Latents [B, F, dimension] -> waveform [B, F·hop_length], silent from frame `frames` on."""
        samples = jnp.arange(latents.shape[1] * self.hop_length)
        if self.head == "waveform":
            return self.decode(latents) * (samples < frames * self.hop_length)
        magnitude, direction = self.decode(latents)
        valid = jnp.arange(magnitude.shape[1]) < frames * (self.hop_length // self.stft_hop)
        advance = jnp.arctan2(direction[..., 1], direction[..., 0])
        return spectral.waveform_from_advance(
            magnitude * valid[:, None], advance, self.n_fft, self.stft_hop, self.refinements
        )

    def __call__(self, wave: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        return self.decode(self.encode(wave))


class AudioCodec(SoundCodec):
    """Speech or music at `sample_rate`; samples are float32 [B, T] in [-1, 1].

    The codes of a clip don't depend on how much silence follows it in a batch (`exact_when_padded`). Params:
    {"model": parameters of SeanetCodec, "codebooks": float32 [K, N, D]}.
    """

    type = "seanet"
    exact_when_padded = True

    def __init__(self, config: dict, params: dict):
        super().__init__(config, params)
        self.module = SeanetCodec.from_config(self.config)
        self.sample_rate = self.config["sample_rate"]
        self.hop_length = self.module.hop_length
        self.frame_rate = self.sample_rate / self.hop_length

    def net_shapes(self) -> dict[str, tuple[int, ...]]:
        wave = jax.ShapeDtypeStruct((1, self.hop_length), jnp.float32)
        books = (self.num_codebooks, self.codebook_size, self.module.dimension)
        return shapes_of_net(self.module, wave, prefix="model/") | {"codebooks": books}

    @functools.cached_property
    def _encode(self):
        @jax.jit
        def encode(params, wave):
            latents = self.module.apply({"params": params["model"]}, wave, method="encode")
            return residual_vq.quantize(params["codebooks"], latents)[0]

        return encode

    @functools.cached_property
    def _decode(self):
        @jax.jit
        def decode(params, codes, frames):
            latents = residual_vq.dequantize(params["codebooks"], codes)
            latents = latents * (jnp.arange(codes.shape[1]) < frames)[:, None]
            return self.module.apply({"params": params["model"]}, latents, frames, method="synthesize")

        return decode

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """float32 [B, T] -> int32 [B, ceil(T / hop_length), codebooks]; long input goes through in chunks.

        UserError if the samples are impossible.
        """
        samples = self.checked_shape(samples)
        check_finite(samples)
        frames = -(-samples.shape[1] // self.hop_length)
        pieces = []
        for start in range(0, frames, CHUNK):
            stop = min(frames, start + CHUNK)
            before = min(CONTEXT, start)
            piece = samples[:, (start - before) * self.hop_length : (stop + CONTEXT) * self.hop_length]
            pieces.append(self._encode_padded(piece, stop - start + before)[:, before:])
        return np.concatenate(pieces, axis=1)

    def _encode_padded(self, samples: np.ndarray, frames: int) -> np.ndarray:
        # At least CONTEXT frames of silence follow, so that how much padding follows makes no difference.
        padded_frames = _round_up(frames + CONTEXT, BUCKET)
        padding = padded_frames * self.hop_length - samples.shape[1]
        wave = np.pad(samples, ((0, 0), (0, padding)))
        return in_batches(lambda part: self._encode(self.params, part), wave)[:, :frames]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32 [B, frames, codebooks] -> float32 [B, frames · hop_length]."""
        codes = self.check_codes(codes)
        frames = codes.shape[1]
        padded = np.pad(codes, ((0, 0), (0, _round_up(frames + CONTEXT, BUCKET) - frames), (0, 0)))
        waves = in_batches(lambda part: self._decode(self.params, part, frames), padded)
        return np.clip(waves[:, : frames * self.hop_length], -1.0, 1.0)

    def encode_many(self, items: list[np.ndarray]) -> list[np.ndarray]:
        """Encodes waves of any lengths, similar lengths together; MediaError names one that can't be."""
        self.check_clips(items)
        groups: dict[int, list[int]] = {}
        counts = [-(-len(item) // self.hop_length) for item in items]
        for index, count in enumerate(counts):
            groups.setdefault(_round_up(count, BUCKET) if count <= CHUNK else count, []).append(index)
        results: list[np.ndarray] = [None] * len(items)
        for length, members in groups.items():
            batch = np.zeros((len(members), length * self.hop_length), np.float32)
            for row, index in enumerate(members):
                batch[row, : len(items[index])] = items[index]
            for row, index in zip(self.encode(batch), members, strict=True):
                results[index] = row[: counts[index]]
        return results


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
