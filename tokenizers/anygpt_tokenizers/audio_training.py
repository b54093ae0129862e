"""Training of audio codecs: the examples, the loss with all that a recipe may add to it, and the figures.

One class serves the small codecs and the published recipes; `recipes.audio` lists the settings.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import audio_losses, residual_vq, spectral
from anygpt_tokenizers.audio_adversary import Adversary, balanced, init_balance
from anygpt_tokenizers.audio_examples import (
    Clip,
    Clips,
    crop,
    random_clip,
    read_clips,
    report_left_out,
    usable,
)
from anygpt_tokenizers.audio_generators import build_generator
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec, load_codec

DIRECT_TERMS = ("commitment", "level_commitment", "distill")  # of the loss, that don't depend on the output
ADVERSARIAL_TERMS = ("adversarial", "feature")
TOGETHER = 32  # held-out clips that are in memory at a time


class TrainingState(NamedTuple):
    """What a step changes besides the parameters.

    The codebooks, the number of steps done, the discriminators and the balance of the loss ((), where the
    recipe has none).
    """

    codebooks: residual_vq.CodebookState
    step: jax.Array
    adversary: Any = ()
    balance: Any = ()


class Quantized(NamedTuple):
    """Latents [B, F, D] after quantisation.

    seen [B, F, D]: what the decoder gets. first [B, F, D]: the vectors of level 0. Both let gradients
    through to the latents. codes int32 [B, F, K]; inputs [B, F, K, D] of each level; used bool [K]; terms:
    of the loss.
    """

    seen: jax.Array
    first: jax.Array
    codes: jax.Array
    inputs: jax.Array
    used: jax.Array
    terms: dict[str, jax.Array]


class AudioTraining:
    """Trains an audio codec from a directory of sound files.

    For the first `quantize_from` steps the decoder sees the encoder's latents as they are; then k-means on
    the recent latents makes the codebooks, and from there on the decoder sees quantised latents.
    """

    def __init__(self, config):
        """config: see `recipes.audio`; `config.codec` becomes the codec's config.json."""
        self.config = config
        self.codec_config = config.codec.to_dict()
        self.generator = build_generator(self.codec_config)
        self.name = f"{self.codec_config['modality']} codec"
        weights = config.loss_weights.to_dict()
        self.output_terms = [name for name in weights if name not in DIRECT_TERMS]
        self.has_teacher = bool(config.teacher.field or config.teacher.function)
        if config.teacher.field and config.teacher.function:
            raise UserError(
                f"config.teacher.field {config.teacher.field!r} and config.teacher.function "
                f"{config.teacher.function!r} are two teachers; set one of them to ''."
            )
        self.adversary = Adversary(config) if config.adversary.networks else None
        if ("distill" in weights) != self.has_teacher or (
            self.has_teacher and not self.codec_config.get("semantic_dimension")
        ):
            raise UserError(
                "A loss weight 'distill' needs config.teacher.field or config.teacher.function and a "
                "config.codec.semantic_dimension, and they need it."
            )
        if self.has_teacher and tuple(config.speed_range) != (1.0, 1.0):
            raise UserError(
                "A teacher's features fit the files' own speed: config.speed_range must be (1, 1)."
            )
        if (self.adversary is None) == bool(set(weights) & set(ADVERSARIAL_TERMS)):
            raise UserError(
                "Loss weights 'adversarial' and 'feature' go together with config.adversary.networks."
            )

    def read_examples(self, data_dir: str | Path) -> Clips:
        """See `audio_examples.read_clips`."""
        return read_clips(self.config, data_dir, self.generator.hop_length)

    def init(self, rng: jax.Array, examples: Clips) -> tuple[dict, TrainingState]:
        """Fresh parameters and an empty codebook state; the codebooks come from the data later."""
        del examples
        config, codec = self.config, self.codec_config
        params = self.generator.init(rng, config.crop_frames)
        codebooks = residual_vq.init_codebooks(
            codec.get("quantizers", codec["num_codebooks"]),
            codec["codebook_size"],
            codec["dimension"],
            config.pool,
        )
        adversary, balance = (), ()
        if self.adversary:
            length = config.crop_frames * self.generator.hop_length
            adversary = self.adversary.init(jax.random.fold_in(rng, 1), length)
        if config.balance:
            balance = init_balance(len(self.output_terms))
        return params, TrainingState(codebooks, jnp.zeros((), jnp.int32), adversary, balance)

    def sample_batch(self, examples: Clips, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Random crops, played at a random speed and loudness (config ranges).

        "wave" float32 [batch_size, crop]; with a teacher also its "features" float32 [batch_size, frames, S]
        and how many "frames" int32 [batch_size] of them there are.
        """
        config = self.config
        rows, count, hop = config.batch_size, config.crop_frames, self.generator.hop_length
        batch = {"wave": np.zeros((rows, count * hop), np.float32)}
        if self.has_teacher:
            width = self.codec_config["semantic_dimension"]
            batch["features"] = np.zeros((rows, count, width), np.float32)
            batch["frames"] = np.zeros(rows, np.int32)
        for row in range(rows):
            clip = random_clip(examples, rng)
            speed = np.exp(rng.uniform(*np.log(config.speed_range)))
            wave, features = crop(clip, count, hop, speed, rng)
            batch["wave"][row, : len(wave)] = wave * rng.uniform(*config.gain_range)
            if features is not None:
                batch["features"][row, : len(features)] = features
                batch["frames"][row] = len(features)
        return batch

    def loss(self, params: dict, state: TrainingState, batch: dict, rng: jax.Array):
        """Batch -> (scalar, (new state, metrics)). With a balance, its gradient is the balanced one.

        "level_commitment" pulls the latents towards what every level makes of them, as in audiocraft. Its
        value is also that of SpeechTokenizer 1.0.1, where only level 0's share has a gradient: each level
        takes its quantised vectors from its input with the straight-through gradient still on, which leaves
        the next level's input none. The latents of every level are meant to stay near their codes, so that
        recipe differs from the original here.
        """
        config, wave = self.config, batch["wave"]
        latents = self.generator.encode(params, wave)
        codebooks = jax.lax.cond(
            state.step == config.quantize_from,
            lambda books: residual_vq.kmeans_codebooks(
                books, rng, latents.shape[0] * latents.shape[1], config.kmeans_iterations
            ),
            lambda books: books,
            state.codebooks,
        )
        found = self._quantize(codebooks.embed, latents, state.step >= config.quantize_from, rng)
        output = self.generator.decode(params, found.seen)
        terms, metrics = dict(found.terms), {}
        if self.has_teacher:
            features = self.generator.project(params, found.first)
            teacher = batch["features"], batch["frames"]
            terms["distill"] = audio_losses.distillation_loss(features, *teacher)
            metrics["teacher_cosine"] = jnp.mean(audio_losses.cosine_over_time(features, *teacher))

        adversary = state.adversary
        if self.adversary:
            adversary, metrics["discriminator"] = self.adversary.update(adversary, wave, output, state.step)

        def terms_of(output) -> dict[str, jax.Array]:
            terms = self._reconstruction_losses(output, wave)
            return {**terms, **(self.adversary.terms(adversary, wave, output) if self.adversary else {})}

        total, balance, output_terms = self._total(state.balance, terms, terms_of, output)
        codebooks = self._moved_codebooks(codebooks, found, state.step >= config.quantize_from, rng)
        use = residual_vq.perplexity(found.codes.reshape(-1, found.codes.shape[-1]), codebooks.embed.shape[1])
        metrics.update({**output_terms, **terms}, loss=total)
        metrics.update({f"batch_perplexity_{i}": use[i] for i in range(len(use))})
        return total, (TrainingState(codebooks, state.step + 1, adversary, balance), metrics)

    def _total(self, balance, direct: dict, terms_of: Callable, output) -> tuple[jax.Array, Any, dict]:
        """(weighted sum of all terms, new balance, the terms that depend on the output)."""
        weights = self.config.loss_weights
        if not self.config.balance:
            terms = terms_of(output)
            everything = {**terms, **direct}
            return sum(weight * everything[name] for name, weight in weights.items()), balance, terms
        wanted = jnp.asarray([weights[name] for name in self.output_terms])
        balance, values, pull = balanced(
            balance,
            lambda output: jnp.stack([terms_of(output)[name] for name in self.output_terms]),
            output,
            wanted,
            self.config.balance,
        )
        total = sum(weights[name] * value for name, value in direct.items() if name in weights)
        # The balanced gradient, under the value of the plain sum.
        total += pull + jax.lax.stop_gradient(wanted @ values - pull)
        return total, balance, dict(zip(self.output_terms, values, strict=True))

    def _quantize(self, books: jax.Array, latents: jax.Array, quantizing: jax.Array, rng) -> Quantized:
        """The latents quantised, or as they are until `quantizing`."""
        still = jax.lax.stop_gradient(latents)
        codes, quantized, inputs = residual_vq.quantize(books, still)
        left = residual_vq.remainders(still, quantized, inputs)
        levels = codes.shape[-1]
        used = jnp.ones(levels, bool)
        if self.config.quantizer_dropout:
            choices = jnp.asarray(self.config.quantizer_dropout)
            count = choices[jax.random.randint(jax.random.fold_in(rng, 1), (), 0, len(choices))]
            used = jnp.arange(levels) < count
            quantized = still - left[..., count - 1, :]
        chosen = jnp.where(quantizing, quantized, still)
        first = jnp.where(quantizing, still - left[..., 0, :], still)
        # Each level pulls the latents towards what it and those before it make of them.
        distances = jnp.mean((latents[..., None, :] - still[..., None, :] + left) ** 2, axis=(0, 1, 3))
        terms = {
            "commitment": jnp.mean((latents - chosen) ** 2),
            "level_commitment": quantizing * jnp.sum(distances * used) / jnp.sum(used),
        }
        through = [latents + jax.lax.stop_gradient(x - latents) for x in (chosen, first)]
        return Quantized(*through, codes, inputs, used, terms)

    def _moved_codebooks(self, codebooks, found: Quantized, quantizing: jax.Array, rng: jax.Array):
        """The codebooks after their moving-average step; until `quantizing`, only the pool gets latents."""
        config = self.config
        inputs = found.inputs.reshape(-1, *found.inputs.shape[-2:])
        codes = found.codes.reshape(-1, found.codes.shape[-1])
        level0 = jnp.broadcast_to(inputs[:, :1], inputs.shape)
        used = found.used if config.quantizer_dropout else None
        return jax.lax.cond(
            quantizing,
            lambda books: residual_vq.update_codebooks(
                books, inputs, codes, rng, config.ema_decay, config.restart_below, used
            ),
            lambda books: books._replace(pool=residual_vq.push_pool(books.pool, level0)),
            codebooks,
        )

    def _reconstruction_losses(self, output, wave: jax.Array) -> dict[str, jax.Array]:
        """All distances of the output from the waveform that this recipe's settings define."""
        config, rate = self.config, self.codec_config["sample_rate"]
        if self.codec_config.get("head") == "istft":
            return self._spectral_losses(output, wave)
        terms = {"l1": jnp.mean(jnp.abs(output - wave))}
        if config.stft_sizes:
            terms.update(
                audio_losses.multi_resolution_losses(
                    output, wave, rate, config.mel_bands, self.codec_config["floor"], config.stft_sizes
                )
            )
        for i, (size, hop) in enumerate(config.mel_windows):
            terms[f"mel_{i}"] = audio_losses.mel_loss(output, wave, rate, size, hop, config.mel_bands)
        if config.mel_scales:
            terms["mel_scales"] = audio_losses.mel_scales_loss(
                output, wave, rate, config.mel_scales, config.mel_bands
            )
        return terms

    def _spectral_losses(self, output: tuple[jax.Array, jax.Array], wave: jax.Array) -> dict[str, jax.Array]:
        codec, (magnitude, direction) = self.codec_config, output
        n_fft, hop, floor = codec["n_fft"], codec["stft_hop"], codec["floor"]
        target = spectral.stft(wave, n_fft, hop)
        terms = audio_losses.magnitude_losses(
            magnitude, jnp.abs(target), codec["sample_rate"], self.config.mel_bands, floor
        )
        return {**terms, "advance": audio_losses.advance_loss(direction, target, n_fft, hop, floor)}

    def to_codec(self, params: dict, state: TrainingState) -> Codec:
        """The codec with these weights, rounded as they are stored."""
        return self.generator.to_codec(params, state.codebooks.embed)

    def read_trained(self, directory: str | Path) -> Codec:
        """The codec of a directory."""
        return load_codec(directory)

    def check_heldout(self, examples: Sequence[Clip]) -> None:
        """UserError if none of the clips that `evaluate` would measure can be used."""
        errors = []
        places = range(min(len(examples), self.config.evaluate_clips))
        if next(usable(places, examples.__getitem__, errors), None) is None:
            report_left_out(errors, len(places), "held-out files")

    def evaluate(self, codec: Codec, examples: Sequence[Clip]) -> dict[str, int | float | list[float]]:
        """Reconstruction of held-out waves: mel distance (mean |Δ log amplitude|), SI-SDR, use of codes.

        Of the first `config.evaluate_clips`, those that can be used; "left_out" counts the others, if any.
        """
        rate, distances, ratios, all_codes, cosines = codec.sample_rate, [], [], [], []
        errors = []
        places = range(min(len(examples), self.config.evaluate_clips))
        for clip, code in _encoded(codec, usable(places, examples.__getitem__, errors, UserError)):
            again = np.clip(codec.decode(code[None])[0], -1, 1)
            original = np.pad(clip.wave, (0, len(again) - len(clip.wave)))
            distances.append(audio_losses.mel_distance(again, original, rate))
            ratios.append(audio_losses.si_sdr(again, original))
            all_codes.append(code)
            if clip.features is not None:
                features = codec.semantic_features(clip.wave[None])
                count = min(features.shape[1], len(clip.features))
                cosine = audio_losses.cosine_over_time(
                    features[:, :count], clip.features[None, :count], np.array([count])
                )
                cosines.append(float(cosine.mean()))
        report_left_out(errors, len(places), "held-out files")
        clips, all_codes = len(all_codes), np.concatenate(all_codes)
        use = residual_vq.perplexity(jnp.asarray(all_codes), codec.codebook_size)
        return {
            "clips": clips,
            **({"left_out": len(errors)} if errors else {}),
            "frames": len(all_codes),
            "mel_distance": float(np.mean(distances)),
            "si_sdr_db": float(np.mean(ratios)),
            "perplexity": [float(value) for value in use],
            "codes_used": [len(np.unique(all_codes[:, level])) for level in range(codec.num_codebooks)],
            **({"teacher_cosine": float(np.mean(cosines))} if cosines else {}),
        }


def _encoded(codec: Codec, clips: Iterator[Clip]) -> Iterator[tuple[Clip, np.ndarray]]:
    """Clips and their codes, of which `TOGETHER` are read and encoded at a time."""
    while part := list(itertools.islice(clips, TOGETHER)):
        yield from zip(part, codec.encode_many([clip.wave for clip in part]), strict=True)
