"""SEED's first stage (Ge et al. 2023): a causal Q-Former learns to tell pictures by their captions.

The loss is BLIP-2's image-text contrast (ITC) alone: the last query of a picture against the first token of a
text, each through a linear layer to a unit vector; the other pictures and texts of the batch, over all
devices, are the wrong answers. Differences from the published training: no dropout; it starts from whatever
`config.init_from` holds, of which text takes only the queries' feed-forward layers, not BLIP-2's BERT.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import WEIGHTS_FILE, in_batches, read_config
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.image_quantizers import unit
from anygpt_tokenizers.safetensors_file import map_arrays
from anygpt_tokenizers.seed_examples import (
    PARTS,
    STAGE1,
    Example,
    Unsaved,
    centred,
    codec_config,
    draw,
    fresh_params,
    read_parts,
    read_pictures,
    spec_of,
)
from anygpt_tokenizers.seed_layers import dense
from anygpt_tokenizers.seed_net import FLOAT32, PictureReader
from anygpt_tokenizers.seed_text import (
    Captions,
    TextReader,
    own_params,
    with_feed_forward_of,
    with_shared,
)

LEAST_TEMPERATURE = 1e-3  # the original has no bound; below this, scores of float32 are beyond use


class Contrast(nn.Module):
    """What both sides need to be compared. Attribute `dim`: of the unit vectors."""

    dim: int

    def setup(self):
        self.picture_out = dense(self.dim, None, FLOAT32)
        self.text_out = dense(self.dim, None, FLOAT32)
        self.temperature = self.param("temperature", nn.initializers.constant(0.07), ())

    def picture(self, queries: jax.Array) -> jax.Array:
        """The Q-Former's output float32 [B, num_queries, D] -> unit vectors [B, dim], of the last query."""
        return unit(self.picture_out(queries[:, -1]))

    def text(self, first: jax.Array) -> jax.Array:
        """A `TextReader`'s output float32 [B, D] -> unit vectors [B, dim]."""
        return unit(self.text_out(first))

    def __call__(self, queries: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Both, and the temperature."""
        return self.picture(queries), self.text(first), jnp.maximum(self.temperature, LEAST_TEMPERATURE)


def contrastive_loss(scores: jax.Array, same: jax.Array, smoothing: float) -> jax.Array:
    """The mean of both directions' cross-entropies.

    Args:
      scores: float32 [B, B], of pictures (rows) with texts, divided by the temperature.
      same: bool [B, B], which text fits which picture; symmetric, true on the diagonal.
      smoothing: share of a row's target that is spread over all of it.
    """
    target = same / same.sum(-1, keepdims=True)
    target = (1 - smoothing) * target + smoothing / scores.shape[-1]
    losses = [optax.softmax_cross_entropy(rows, target).mean() for rows in (scores, scores.T)]
    return sum(losses) / 2


class Stage1Net:
    """The networks of the first stage over one tree of parameters.

    The tree has the parts `PARTS` of a `SeedNet`, "text" (`own_params` of a `TextReader`) and "contrast".
    """

    def __init__(self, codec: dict, vocab_size: int, contrast_dim: int):
        spec, self.dtype = spec_of(codec), jnp.dtype(codec["dtype"])
        self.pictures = PictureReader(spec, self.dtype)
        sizes = spec.qformer_dim, spec.qformer_layers, spec.qformer_heads, spec.qformer_hidden
        self.text = TextReader(vocab_size, *sizes, self.dtype)
        self.contrast = Contrast(contrast_dim)

    def picture_vectors(self, params: dict, pixels: jax.Array) -> jax.Array:
        """uint8 [B, S, S, 3] -> unit vectors float32 [B, contrast_dim]."""
        return self.contrast.apply(
            {"params": params["contrast"]}, self._queries(params, pixels), method="picture"
        )

    def text_vectors(self, params: dict, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> unit vectors float32 [B, contrast_dim]."""
        return self.contrast.apply({"params": params["contrast"]}, self._first(params, tokens), method="text")

    def __call__(self, params: dict, pixels: jax.Array, tokens: jax.Array):
        """What `Contrast` returns for them."""
        sides = self._queries(params, pixels), self._first(params, tokens)
        return self.contrast.apply({"params": params["contrast"]}, *sides)

    def _queries(self, params: dict, pixels: jax.Array) -> jax.Array:
        return self.pictures.apply(
            {"params": {part: params[part] for part in PARTS}}, pixels, method="queries"
        )

    def _first(self, params: dict, tokens: jax.Array) -> jax.Array:
        return self.text.apply({"params": with_shared(params["text"], params["qformer"])}, tokens)


class SeedStage1:
    """A trained first stage: pictures and texts as comparable vectors.

    Attributes: config, what config.json says; params, the tree of `Stage1Net`.
    """

    def __init__(self, config: dict, params: dict):
        self.config, self.params = config, params
        text = config["text"]
        self._captions = Captions(text["max_tokens"], text["model"])
        net = Stage1Net(config, self._captions.vocab_size, text["contrast_dim"])
        self._pictures, self._texts = jax.jit(net.picture_vectors), jax.jit(net.text_vectors)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Reads the output of a first stage; UserError if it is none."""
        config = read_config(Path(directory))
        if config.get("type") != STAGE1:
            raise UserError(f"{directory} holds no first stage of SEED.")
        flat = {
            name: jnp.asarray(array) for name, array in map_arrays(Path(directory) / WEIGHTS_FILE).items()
        }
        return cls(config, traverse_util.unflatten_dict(flat, sep="/"))

    def picture_vectors(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> unit vectors float32 [B, contrast_dim]."""
        return in_batches(lambda rows: self._pictures(self.params, rows), pixels)

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [B, contrast_dim] of B texts."""
        return in_batches(lambda rows: self._texts(self.params, rows), self._captions(texts))


class SeedStage1Training:
    """Trains stage 1; the config's fields: see configs/tokenizers/seed.py."""

    name = "SEED stage 1"

    def __init__(self, config):
        self.config = config
        self._captions = Captions(config.text.max_tokens, config.text.model)
        self._codec = config.codec.to_dict()
        self.net = Stage1Net(self._codec, self._captions.vocab_size, config.text.contrast_dim)
        if config.freeze_vision and not config.init_from:
            raise UserError(
                "Stage 1 keeps the vision tower as it is, so it needs a trained one: give the directory of "
                "import-seed as --config.init_from, or train it too with --config.freeze_vision=False."
            )

    def read_examples(self, data_dir: str | Path) -> Sequence[Example]:
        """The pictures with captions of DIR/manifest.jsonl."""
        return read_pictures(self.config, data_dir)

    def init(self, rng: jax.Array, examples: Sequence[Example]) -> tuple[dict, dict]:
        """Parameters from `config.init_from` and fresh ones; the state is what is frozen."""
        config, spec = self.config, spec_of(self._codec)
        picture, text, contrast = jax.random.split(rng, 3)
        fresh = fresh_params(spec, picture)
        params = {part: fresh[part] for part in PARTS}
        tokens = jnp.asarray(self._captions(["", ""]))
        params["text"] = own_params(initial_params(self.net.text, text, tokens))
        if config.init_from:
            params |= read_parts(config.init_from, config.init_parts, spec)
            if "qformer" in config.init_parts:
                params["text"] = with_feed_forward_of(params["text"], params["qformer"])
        sides = jnp.zeros((1, spec.num_queries, spec.qformer_dim)), jnp.zeros((1, spec.qformer_dim))
        params["contrast"] = initial_params(self.net.contrast, contrast, *sides)
        state = {"vision": params.pop("vision")} if config.freeze_vision else {}
        return params, state

    def sample_batch(self, examples: Sequence[Example], rng: np.random.Generator) -> dict:
        """ "pixels" uint8 [batch_size, S, S, 3], "tokens" int32 [batch_size, max_tokens]."""
        drawn = draw(self.config, examples, rng)
        tokens = self._captions([example.caption for example in drawn])
        return {"pixels": np.stack([example.pixels for example in drawn]), "tokens": tokens}

    def loss(self, params: dict, state: dict, batch: dict, rng: jax.Array):
        """Batch -> (the contrastive loss, (state, metrics))."""
        del rng
        pixels, tokens = batch["pixels"], batch["tokens"]
        pictures, texts, temperature = self.net({**params, **state}, pixels, tokens)
        scores = jnp.einsum("bd,cd->bc", pictures, texts, precision="highest") / temperature
        same = jnp.eye(len(tokens), dtype=bool)
        if self.config.equal_captions_match:
            same |= (tokens[:, None] == tokens).all(-1)
        loss = contrastive_loss(scores, same, self.config.label_smoothing)
        chosen = {"text": scores.argmax(1), "picture": scores.argmax(0)}
        right = {
            f"{side}_accuracy": jnp.take_along_axis(same, index[:, None], axis=1).mean()
            for side, index in chosen.items()
        }
        return loss, (state, {**right, "temperature": temperature})

    def to_codec(self, params: dict, state: dict) -> Unsaved:
        """What is to be saved."""
        config = {**codec_config(self.config, STAGE1), "text": self.config.text.to_dict()}
        return Unsaved(config, {**params, **state})

    def read_trained(self, directory: str | Path) -> SeedStage1:
        """The model of a directory."""
        return SeedStage1.from_pretrained(directory)

    def evaluate(self, model: SeedStage1, examples: Sequence[Example]) -> dict:
        """How often the nearest caption is a picture's own, and the other way, among held-out ones."""
        examples = centred(self.config, examples)
        captions = np.array([example.caption for example in examples])
        texts = model.text_vectors(captions)
        scores = model.picture_vectors(np.stack([example.pixels for example in examples])) @ texts.T
        own = captions[:, None] == captions
        return {
            "pictures": len(examples),
            "caption_of_picture": round(float(own[np.arange(len(own)), scores.argmax(1)].mean()), 4),
            "picture_of_caption": round(float(own[scores.argmax(0), np.arange(len(own))].mean()), 4),
            "chance": round(float(own.mean()), 4),
        }
