"""Training of ViT-VQGAN and MaskGIT's VQGAN: examples, the loss with all that a recipe may add, the figures.

`recipes.vqgan` lists the settings.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import picture_losses
from anygpt_tokenizers.audio_examples import Clips, random_clip
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.code_use import init_code_use, moved_codebook, update_code_use
from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.image_training import code_statistics
from anygpt_tokenizers.manifest import rows_with
from anygpt_tokenizers.media_image import read_image
from anygpt_tokenizers.perceptual import perceptual_distance, read_features
from anygpt_tokenizers.picture_adversary import PictureAdversary
from anygpt_tokenizers.seed_examples import cropped
from anygpt_tokenizers.vqgan import VqganCodec, VqganNet, completed, init_params

TERMS = ("l2", "logit_laplace", "codebook", "commitment", "entropy", "perceptual", "adversarial")


class TrainingState(NamedTuple):
    """What a step changes besides the parameters, and what it needs that never changes.

    step int32; use: see `code_use`; adversary: of the discriminator, features: the perceptual net's weights,
    () where the recipe has none.
    """

    step: jax.Array
    use: Any
    adversary: Any = ()
    features: Any = ()


class VqganTraining:
    """Trains a `VqganCodec` from a directory of pictures."""

    name = "VQGAN"

    def __init__(self, config):
        self.config = config
        self._codec = {"num_codebooks": 1, **completed(config.codec.to_dict())}
        self.net = VqganNet(self._codec, jnp.dtype(config.dtype))
        self._weights = {name: weight for name, weight in config.loss_weights.items() if weight}
        self._check_weights()
        self._has_book = self._codec["quantizer"]["kind"] != "fsq"
        self.adversary = PictureAdversary(config) if "adversarial" in self._weights else None

    def _check_weights(self) -> None:
        unknown = set(self._weights) - set(TERMS)
        if unknown:
            raise UserError(f"There is no loss {sorted(unknown)[0]!r}; there are {', '.join(TERMS)}.")
        if "logit_laplace" in self._weights and self._codec["output"] != "logits":
            raise UserError(
                'A loss weight "logit_laplace" needs a decoder that gives distributions: set '
                'config.codec.output to "logits".'
            )
        if "perceptual" in self._weights and not self.config.perceptual_weights:
            raise UserError(
                f"config.loss_weights.perceptual is {self._weights['perceptual']}, but "
                "config.perceptual_weights names no file: give the weights of a VGG-16 as safetensors (the "
                "docstring of anygpt_tokenizers.perceptual says how to write them), or do without by "
                "--config.loss_weights.perceptual=0."
            )

    def read_examples(self, data_dir: str | Path) -> Sequence[np.ndarray]:
        """The pictures of DIR/manifest.jsonl, uint8 [S, S, 3], larger by what cropping takes away.

        With `config.keep_in_memory` they are read now, else whenever they are drawn.
        """
        modality = self._codec["modality"]
        # The smallest crop then has as many pixels as the network sees.
        size = round(self._codec["image_size"] / self.config.crop_scale[0] ** 0.5)
        read = functools.partial(_read, folder=Path(data_dir), field=modality, size=size)
        return Clips(rows_with(data_dir, modality), read, self.config.keep_in_memory)

    def init(self, rng: jax.Array, examples: Sequence[np.ndarray]) -> tuple[dict, TrainingState]:
        """Fresh parameters and an account of no use; the perceptual net's weights are read."""
        del examples
        moving = self._has_book and self.config.restart_after
        width = self._codec["quantizer"]["dim"] if moving else None
        use = init_code_use(self._codec["codebook_size"], width)
        adversary = self.adversary.init(jax.random.fold_in(rng, 1)) if self.adversary else ()
        features = read_features(self.config.perceptual_weights) if "perceptual" in self._weights else ()
        state = TrainingState(jnp.zeros((), jnp.int32), use, adversary, features)
        return init_params(self._codec, rng), state

    def sample_batch(self, examples: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """uint8 [batch_size, S, S, 3], cropped and mirrored as the config says; broken files are skipped."""
        config = self.config
        return np.stack(
            [
                cropped(
                    random_clip(examples, rng), self._codec["image_size"], config.crop_scale, config.flip, rng
                )
                for _ in range(config.batch_size)
            ]
        )

    def loss(self, params: dict, state: TrainingState, batch: jax.Array, rng: jax.Array):
        """Batch uint8 [B, S, S, 3] -> (weighted sum of the terms, (new state, metrics))."""
        config, pixels = self.config, batch.astype(jnp.float32) / 255
        temperature = config.entropy_temperature if "entropy" in self._weights else 0.0
        output, latents, quantised = self.net.apply({"params": params}, pixels, temperature)
        made = picture_losses.pixels_of(output, self._codec["output"])
        terms = {"l2": jnp.mean((made - pixels) ** 2), **quantised.terms}
        if "logit_laplace" in self._weights:
            terms["logit_laplace"] = picture_losses.logit_laplace(output, pixels)
        if "perceptual" in self._weights:
            terms["perceptual"] = perceptual_distance(state.features, made, pixels)
        adversary, judged = state.adversary, {}
        if self.adversary:
            adversary, judged = self.adversary.update(adversary, pixels, made, state.step)
            terms["adversarial"] = self.adversary.term(adversary, made)
        total = sum(weight * terms[name] for name, weight in self._weights.items() if name in terms)
        use, figures = update_code_use(
            state.use,
            quantised.codes,
            jax.lax.stop_gradient(latents),
            rng,
            config.usage_decay,
            config.restart_after,
        )
        state = TrainingState(state.step + 1, use, adversary, state.features)
        psnr = picture_losses.psnr(terms["l2"])
        return total, (state, {**terms, **judged, **figures, "psnr": psnr})

    def after_update(self, params: dict, state: TrainingState) -> tuple[dict, TrainingState]:
        """Moves the codes that `loss` chose."""
        if not self._has_book:
            return params, state
        codebook = moved_codebook(state.use, params["quantizer"]["codebook"])
        return {**params, "quantizer": {"codebook": codebook}}, state

    def to_codec(self, params: dict, state: TrainingState) -> VqganCodec:
        """The codec with these weights, rounded as they are stored."""
        return VqganCodec(self._codec, params)

    def read_trained(self, directory: str | Path) -> VqganCodec:
        """The codec of a directory."""
        return VqganCodec.from_pretrained(directory)

    def evaluate(self, codec: VqganCodec, examples: Sequence[np.ndarray]) -> dict:
        """Reconstruction and use of codes of at most `config.evaluate_pictures` whole held-out pictures."""
        pictures = np.stack(self._whole(examples))
        codes = codec.encode(pictures)
        error = (codec.decode(codes).astype(np.float64) - pictures) / 255
        squared = np.mean(error**2, axis=(1, 2, 3))
        statistics = code_statistics(codes, codec.codebook_size)
        return {
            "pictures": len(pictures),
            "psnr_db": round(float(np.mean(picture_losses.psnr(squared))), 2),
            "mean_absolute_error": round(float(np.mean(np.abs(error))) * 255, 3),
            **statistics,
            "dead_codes": codec.codebook_size - statistics["codes_used"][0],
        }

    def _whole(self, examples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The first examples at the net's size; files that can't be used are left out."""
        whole, rng = [], np.random.default_rng(0)
        for index in range(min(len(examples), self.config.evaluate_pictures)):
            try:
                picture = examples[index]
            except MediaError:
                continue
            whole.append(cropped(picture, self._codec["image_size"], (1.0, 1.0), False, rng))
        if not whole:
            raise UserError(
                "None of the held-out pictures can be used; look at the files that the manifest names."
            )
        return whole


def _read(row: dict, folder: Path, field: str, size: int) -> np.ndarray:
    return read_image(folder / row[field], size)
