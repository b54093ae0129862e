"""Training of the audio codec: what an example is, the loss, and how a codec is judged on held-out files."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import audio_losses, residual_vq, spectral
from anygpt_tokenizers.audio_codec import AudioCodec, SeanetCodec
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.media_audio import read_audio


class TrainingState(NamedTuple):
    """What a step changes besides the parameters: the codebooks and the number of steps done."""

    codebooks: residual_vq.CodebookState
    step: jax.Array


class AudioTraining:
    """Trains a SeanetCodec from a directory of sound files.

    For the first `quantize_from` steps the decoder sees the encoder's latents as they are; then k-means on
    the recent latents makes the codebooks, and from there on the decoder sees quantised latents.
    """

    def __init__(self, config):
        """config: see configs/tokenizers/speech_small.py; `config.codec` becomes the codec's config.json."""
        self.config = config
        self.codec_config = config.codec.to_dict()
        self.module = SeanetCodec.from_config(self.codec_config)

    def read_examples(self, data_dir: str | Path) -> list[np.ndarray]:
        """All waves, float32 [T], of this modality in DIR/manifest.jsonl; broken files raise MediaError."""
        manifest = Path(data_dir) / "manifest.jsonl"
        if not manifest.is_file():
            raise UserError(f"There is no {manifest}; --data must name a directory with a manifest.jsonl.")
        modality, rate = self.codec_config["modality"], self.codec_config["sample_rate"]
        rows = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
        paths = [manifest.parent / row[modality] for row in rows if modality in row]
        if not paths:
            raise UserError(f"{manifest} has no row with {modality!r}.")
        return [read_audio(path, rate) for path in paths]

    def init(self, rng: jax.Array, examples: list[np.ndarray]) -> tuple[dict, TrainingState]:
        """Fresh parameters and an empty codebook state; the codebooks come from the data later."""
        del examples
        crop = jnp.zeros((1, self.config.crop_frames * self.module.hop_length))
        params = jax.jit(self.module.init)(rng, crop)["params"]
        codec = self.codec_config
        codebooks = residual_vq.init_codebooks(
            codec["num_codebooks"], codec["codebook_size"], codec["dimension"], self.config.pool
        )
        return params, TrainingState(codebooks, jnp.zeros((), jnp.int32))

    def sample_batch(self, examples: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """float32 [batch_size, crop]: random crops, played at a random speed and loudness (config ranges)."""
        length = self.config.crop_frames * self.module.hop_length
        batch = np.zeros((self.config.batch_size, length), np.float32)
        for row in batch:
            wave = examples[rng.integers(len(examples))]
            speed = np.exp(rng.uniform(*np.log(self.config.speed_range)))
            wanted = int(length * speed)
            start = rng.integers(max(1, len(wave) - wanted + 1))
            crop = wave[start : start + wanted]
            if speed != 1.0:
                crop = np.interp(np.arange(int(len(crop) / speed)) * speed, np.arange(len(crop)), crop)
            row[: len(crop[:length])] = crop[:length] * rng.uniform(*self.config.gain_range)
        return batch

    def loss(self, params: dict, state: TrainingState, batch: jax.Array, rng: jax.Array):
        """Batch [B, T] -> (scalar, (new state, metrics))."""
        config = self.config
        variables = {"params": params}
        latents = self.module.apply(variables, batch, method="encode")
        codebooks = jax.lax.cond(
            state.step == config.quantize_from,
            lambda books: residual_vq.kmeans_codebooks(books, rng, latents.shape[0] * latents.shape[1]),
            lambda books: books,
            state.codebooks,
        )
        quantizing = state.step >= config.quantize_from
        codes, quantized, inputs = residual_vq.quantize(codebooks.embed, jax.lax.stop_gradient(latents))
        chosen = jnp.where(quantizing, quantized, jax.lax.stop_gradient(latents))
        commitment = jnp.mean((latents - chosen) ** 2)
        seen = latents + jax.lax.stop_gradient(chosen - latents)
        terms = self._reconstruction_losses(self.module.apply(variables, seen, method="decode"), batch)
        terms["commitment"] = commitment
        total = sum(weight * terms[name] for name, weight in config.loss_weights.items())

        flat_inputs = inputs.reshape(-1, *inputs.shape[-2:])
        flat_codes = codes.reshape(-1, codes.shape[-1])
        level0 = jnp.broadcast_to(flat_inputs[:, :1], flat_inputs.shape)
        codebooks = jax.lax.cond(
            quantizing,
            lambda books: residual_vq.update_codebooks(
                books, flat_inputs, flat_codes, rng, config.ema_decay, config.restart_below
            ),
            lambda books: books._replace(pool=residual_vq.push_pool(books.pool, level0)),
            codebooks,
        )
        use = residual_vq.perplexity(flat_codes, self.codec_config["codebook_size"])
        metrics = {
            **terms,
            "loss": total,
            **{f"batch_perplexity_{i}": use[i] for i in range(codes.shape[-1])},
        }
        return total, (TrainingState(codebooks, state.step + 1), metrics)

    def _reconstruction_losses(self, output, batch: jax.Array) -> dict[str, jax.Array]:
        rate, bands, floor = self.codec_config["sample_rate"], self.config.mel_bands, self.module.floor
        if self.module.head == "waveform":
            return audio_losses.multi_resolution_losses(
                output, batch, rate, bands, floor, self.config.stft_sizes
            )
        magnitude, direction = output
        n_fft, hop = self.module.n_fft, self.module.stft_hop
        target = spectral.stft(batch, n_fft, hop)
        terms = audio_losses.magnitude_losses(magnitude, jnp.abs(target), rate, bands, floor)
        return {**terms, "advance": audio_losses.advance_loss(direction, target, n_fft, hop, floor)}

    def to_codec(self, params: dict, state: TrainingState) -> AudioCodec:
        """The codec with these weights, rounded as they are stored."""
        return AudioCodec(self.codec_config, {"model": params, "codebooks": state.codebooks.embed})

    def evaluate(self, codec: AudioCodec, examples: list[np.ndarray]) -> dict[str, float | list[float]]:
        """Reconstruction of held-out waves: mel distance (mean |Δ log amplitude|), SI-SDR, use of codes."""
        rate = codec.sample_rate
        codes = codec.encode_many(examples)
        distances, ratios = [], []
        for wave, code in zip(examples, codes, strict=True):
            again = codec.decode(code[None])[0]
            original = np.pad(wave, (0, len(again) - len(wave)))
            mels = [
                audio_losses.log_mel(jnp.abs(spectral.stft(x[None], 1280, 160)), rate, 80, 1e-3)
                for x in (original, again)
            ]
            distances.append(float(jnp.mean(jnp.abs(mels[0] - mels[1]))))
            ratios.append(audio_losses.si_sdr(again, original))
        all_codes = np.concatenate(codes)
        use = residual_vq.perplexity(jnp.asarray(all_codes), codec.codebook_size)
        return {
            "clips": len(examples),
            "frames": len(all_codes),
            "mel_distance": float(np.mean(distances)),
            "si_sdr_db": float(np.mean(ratios)),
            "perplexity": [float(value) for value in use],
            "codes_used": [len(np.unique(all_codes[:, level])) for level in range(codec.num_codebooks)],
        }
