"""SEED's second stage (Ge et al. 2023): codes from which the Q-Former's output and an embedding come back.

Vision tower and Q-Former are frozen. Learnt are the layers around the codebook, the codebook, and two stacks
of blocks: one rebuilds the Q-Former's output (cosine) and is dropped after training, the other makes the
embedding that unCLIP draws from (squared distance to a teacher's, CLIP ViT-H/14's in the original).

The quantiser is the original's: a codebook learnt by gradients, of which `beta` scales the codebook's part
and not the latents'. That uses few of its codes if left alone, so `config.restart_after` can move codes that
were idle for so many steps onto latents of the batch.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers import seed_layers
from anygpt_tokenizers.audio_examples import imported
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.code_use import init_code_use, moved_codebook, update_code_use
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.image_quantizers import nearest_code
from anygpt_tokenizers.image_training import code_statistics
from anygpt_tokenizers.seed import SeedCodec
from anygpt_tokenizers.seed_examples import (
    PARTS,
    SEED,
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
from anygpt_tokenizers.seed_net import FLOAT32, SeedNet, SeedSpec


class Reconstruction(nn.Module):
    """What is decoded from the codes, to the Q-Former's output again; for training only."""

    spec: SeedSpec

    @nn.compact
    def __call__(self, decoded: jax.Array) -> jax.Array:
        """float32 [B, num_queries, qformer_dim] -> the same."""
        spec = self.spec
        x = decoded + self.param("positions", nn.initializers.normal(0.02), decoded.shape[1:])
        settings = spec.head_heads, spec.head_hidden, True, FLOAT32
        return seed_layers.in_turn(self, "blocks", seed_layers.Block, settings, spec.head_layers, x)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines [...] of vectors [..., D]."""
    lengths = jnp.sum(a**2, -1) * jnp.sum(b**2, -1)
    return jnp.sum(a * b, -1) * jax.lax.rsqrt(lengths + 1e-12)


class SeedStage2Training:
    """Trains stage 2; the config's fields: see configs/tokenizers/seed.py.

    State: "frozen", the parts that aren't trained; "use", the `CodeUse` of the codebook.
    """

    name = "SEED stage 2"

    def __init__(self, config):
        self.config = config
        self._codec = config.codec.to_dict()
        self.spec = spec_of(self._codec)
        self.net = SeedNet(self.spec, jnp.dtype(config.codec.dtype))
        self.reconstruction = Reconstruction(self.spec)
        function, field = config.teacher.function, config.teacher.field
        if bool(function) == bool(field):
            raise UserError(
                "Stage 2 learns a teacher's embeddings: give either --config.teacher.field, the manifest's "
                'name of their .npy files, or --config.teacher.function="module:function".'
            )
        if field and (config.crop_scale[0] < 1 or config.flip):
            raise UserError(
                "Embeddings in files are of whole pictures: set --config.crop_scale='(1.0, 1.0)' and "
                "--config.flip=False, or give a teacher as a function."
            )
        self._teacher: Callable | None = imported(function) if function else None

    def read_examples(self, data_dir: str | Path) -> Sequence[Example]:
        """The pictures of DIR/manifest.jsonl, with the teacher's embeddings if they are files."""
        return read_pictures(self.config, data_dir, self.config.teacher.field)

    def init(self, rng: jax.Array, examples: Sequence[Example]) -> tuple[dict, dict]:
        """Fresh parameters, but for `config.init_parts`, which are read from `config.init_from`."""
        config, spec = self.config, self.spec
        parts = sorted({*PARTS, *config.init_parts})
        if not config.init_from:
            raise UserError(
                "Stage 2 goes on from stage 1: give the directory that it wrote as --config.init_from."
            )
        given = read_parts(config.init_from, parts, spec)
        params = fresh_params(spec, rng) | given
        decoded = jnp.zeros((1, spec.num_queries, spec.qformer_dim))
        params["reconstruction"] = initial_params(self.reconstruction, jax.random.fold_in(rng, 1), decoded)
        state = {
            "frozen": {part: params.pop(part) for part in PARTS},
            "use": init_code_use(spec.codebook_size, spec.code_dim if config.restart_after else None),
        }
        return params, state

    def sample_batch(self, examples: Sequence[Example], rng: np.random.Generator) -> dict:
        """ "pixels" uint8 [batch_size, S, S, 3], "embeddings" float32 [batch_size, embed_dim]."""
        drawn = draw(self.config, examples, rng)
        pixels = np.stack([example.pixels for example in drawn])
        return {"pixels": pixels, "embeddings": self._embeddings(drawn, pixels)}

    def _embeddings(self, examples: Sequence[Example], pixels: np.ndarray) -> np.ndarray:
        if self._teacher is None:
            return np.stack([example.embedding for example in examples])
        embeddings = np.asarray(self._teacher(pixels), np.float32)
        if embeddings.shape != (len(pixels), self.spec.embed_dim):
            raise UserError(
                f"{self.config.teacher.function} made {list(embeddings.shape)} of {len(pixels)} pictures; "
                f"expected is [{len(pixels)}, {self.spec.embed_dim}] (config.codec.embed_dim)."
            )
        return embeddings

    def loss(self, params: dict, state: dict, batch: dict, rng: jax.Array):
        """Batch -> (weighted sum of the three terms, (state, metrics))."""
        config, frozen = self.config, state["frozen"]
        net = functools.partial(self.net.apply, {"params": {**params, **frozen}})
        queries = net(batch["pixels"], method="queries")
        latents = net(queries, method="latents_of")
        codes = nearest_code(params["codebook"], jax.lax.stop_gradient(latents))
        chosen = params["codebook"][codes]
        fixed, target = jax.lax.stop_gradient((chosen, latents))
        embedding, decoded = net(latents + jax.lax.stop_gradient(chosen - latents), method="decoded")
        rebuilt = self.reconstruction.apply({"params": params["reconstruction"]}, decoded)
        terms = {
            "vq": jnp.mean((fixed - latents) ** 2) + config.beta * jnp.mean((chosen - target) ** 2),
            "reconstruction": jnp.mean(1 - cosine(rebuilt, queries)),
            "distill": jnp.mean((embedding - batch["embeddings"]) ** 2),
        }
        total = sum(config.loss_weights[name] * value for name, value in terms.items())
        use, figures = update_code_use(
            state["use"], codes, target, rng, config.usage_decay, config.restart_after
        )
        return total, ({"frozen": frozen, "use": use}, {**terms, **figures})

    def after_update(self, params: dict, state: dict) -> tuple[dict, dict]:
        """Moves the codes that `loss` chose."""
        return {**params, "codebook": moved_codebook(state["use"], params["codebook"])}, state

    def to_codec(self, params: dict, state: dict) -> Unsaved:
        """The codec that is to be saved; the blocks of reconstruction are not in it."""
        kept = {name: value for name, value in params.items() if name != "reconstruction"}
        return Unsaved(codec_config(self.config, SEED), {**kept, **state["frozen"]})

    def read_trained(self, directory: str | Path) -> SeedCodec:
        """The codec of a directory."""
        return SeedCodec.from_pretrained(directory)

    def evaluate(self, codec: SeedCodec, examples: Sequence[Example]) -> dict:
        """Use of the codes, and how near the embeddings of held-out pictures come to the teacher's."""
        examples = centred(self.config, examples)
        pixels = np.stack([example.pixels for example in examples])
        wanted, codes = self._embeddings(examples, pixels), codec.encode(pixels)
        made = codec.embed(codes)
        distances = np.sum(made**2, 1)[:, None] + np.sum(wanted**2, 1) - 2 * made @ wanted.T
        lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(wanted, axis=1)
        return {
            "pictures": len(examples),
            "embedding_mse": round(float(np.mean((made - wanted) ** 2)), 5),
            "embedding_variance": round(float(wanted.var(axis=0).mean()), 5),
            "embedding_cosine": round(float(np.mean(np.sum(made * wanted, 1) / (lengths + 1e-9))), 4),
            "own_embedding_is_nearest": round(float(np.mean(distances.argmin(1) == np.arange(len(made)))), 4),
            **code_statistics(codes, codec.codebook_size),
        }
