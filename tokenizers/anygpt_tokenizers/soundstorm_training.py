"""Training of SoundStorm (Borsos et al. 2023, section 3.2): examples, the mask, the loss, figures."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from anygpt_tokenizers.audio_examples import report_left_out, usable
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import MediaError, load_codec
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.manifest import rows_with
from anygpt_tokenizers.soundstorm import SoundStorm
from anygpt_tokenizers.soundstorm_net import SoundStormNet, SoundStormSpec
from anygpt_tokenizers.speechtokenizer import SpeechTokenizer

TOGETHER = 32  # sounds that are in memory at a time


class Mask(NamedTuple):
    """What is hidden from the network in a batch of B rows and N positions.

    level int32 [B]: the acoustic level that is learnt. hidden bool [B, N]: positions where it is unknown, and
    has to be told. new bool [B, N]: positions after the prompt, where all levels after it are unknown.
    """

    level: jax.Array
    hidden: jax.Array
    new: jax.Array


def draw_mask(rng: jax.Array, lengths: jax.Array, size: int, levels: int) -> Mask:
    """A mask for rows of `lengths` [B] codes, padded to `size`.

    Each row draws a level, a prompt 0..t-1 that stays as it is, and a share cos(π/2 · u), u uniform, of the
    positions after it. At least one is hidden, where the original may hide none (and its loss is not a
    number); the original also draws one level and one prompt for the whole batch.
    """
    keys = jax.random.split(rng, 4)
    rows = lengths.shape[0]
    start = jnp.floor(jax.random.uniform(keys[0], (rows,)) * lengths)
    place = jnp.arange(size)
    new = (place >= start[:, None]) & (place < lengths[:, None])
    share = jnp.cos(jnp.pi / 2 * jax.random.uniform(keys[1], (rows,)))
    wanted = jnp.maximum(1, jnp.ceil(share * new.sum(-1)))
    scores = jnp.where(new, jax.random.uniform(keys[2], new.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)
    level = jax.random.randint(keys[3], (rows,), 0, levels)
    return Mask(level, (rank < wanted[:, None]) & new, new)


class SoundStormTraining:
    """Trains SoundStorm on codes of a SpeechTokenizer; the config's fields: see configs/soundstorm.py."""

    name = "SoundStorm"

    def __init__(self, config):
        self.config = config
        self.spec = SoundStormSpec(**config.net.to_dict())
        self.net = SoundStormNet(self.spec)

    def read_examples(self, data_dir: str | Path) -> list[np.ndarray]:
        """Codes int32 [F, 1 + levels] of every row of DIR/manifest.jsonl.

        They are read from the .npy file in the row's `config.codes.field`; or the sound file in its
        `config.codes.modality` is encoded with the codec in the directory `config.codes.codec`. Files that
        can't be used are left out, and standard error says how many; UserError if none is left.
        """
        wanted, errors = self.config.codes, []
        field = wanted.modality if wanted.codec else wanted.field
        paths = [Path(data_dir) / row[field] for row in rows_with(data_dir, field)]
        if wanted.codec:
            codec, examples = self._codec(), []
            sounds = usable(paths, codec.read_file, errors)
            while part := list(itertools.islice(sounds, TOGETHER)):
                examples += codec.encode_many(part, 1 + self.spec.levels)
        else:
            examples = list(usable(paths, self._read_codes, errors))
        report_left_out(errors, len(paths))
        return examples

    def _codec(self) -> SpeechTokenizer:
        """The codec of `config.codes.codec`; UserError unless this SoundStorm fits it."""
        place, spec = self.config.codes.codec, self.spec
        codec = load_codec(place)
        if not isinstance(codec, SpeechTokenizer):
            raise UserError(f"{place} holds a {codec.type}; SoundStorm learns SpeechTokenizer's codes.")
        levels, size = codec.spec.quantizers - 1, codec.codebook_size
        if (spec.levels, spec.codebook_size, spec.semantic_size) != (levels, size, size):
            raise UserError(
                f"config.net has levels {spec.levels}, codebook_size {spec.codebook_size} and semantic_size "
                f"{spec.semantic_size}; the codec in {place} asks for {levels}, {size} and {size}."
            )
        return codec

    def _read_codes(self, path: Path) -> np.ndarray:
        codes = _read_array(path)
        self._check(path, codes)
        return codes[:, : 1 + self.spec.levels].astype(np.int32)

    def _check(self, path: Path, codes: np.ndarray) -> None:
        spec = self.spec
        if codes.ndim != 2 or codes.shape[1] < 1 + spec.levels or not len(codes):
            raise UserError(
                f"{path}: codes have the shape [frames, {1 + spec.levels}], not {list(codes.shape)}."
            )
        sizes = np.array([spec.semantic_size] + [spec.codebook_size] * spec.levels)
        codes = codes[:, : 1 + spec.levels]
        wrong = np.argwhere((codes < 0) | (codes >= sizes))
        if len(wrong):
            frame, level = wrong[0]
            raise UserError(
                f"{path}: frame {frame}, level {level} is {codes[frame, level]}; codes lie in "
                f"0..{sizes[level] - 1}."
            )

    def init(self, rng: jax.Array, examples: Sequence[np.ndarray]) -> tuple[dict, dict]:
        """Fresh parameters; embeddings begin as the vectors of `config.codes.codec`, if those are as wide."""
        del examples
        codes = jnp.zeros((1, 2, self.spec.levels), jnp.int32)
        params = initial_params(self.net, rng, codes, codes[..., 0], jnp.ones((1, 2), bool))
        if self.config.codes.codec:
            books = self._codec().params.get("quantizer", {}).get("embed")
            if books is not None and books.shape[-1] == self.spec.dim:
                unknown = np.zeros((self.spec.levels, 1, self.spec.dim), np.float32)
                acoustic = np.concatenate([books[1 : 1 + self.spec.levels], unknown], axis=1)
                params["semantic_embedding"] = jnp.asarray(books[0])
                params["code_embedding"] = jnp.asarray(acoustic.reshape(-1, self.spec.dim))
        return params, {}

    def sample_batch(self, examples: Sequence[np.ndarray], rng: np.random.Generator) -> dict:
        """Random stretches: "codes" int32 [batch_size, max_frames, 1 + levels], "lengths" [batch_size]."""
        config = self.config
        batch = {
            "codes": np.zeros((config.batch_size, config.max_frames, 1 + self.spec.levels), np.int32),
            "lengths": np.zeros(config.batch_size, np.int32),
        }
        for row in range(config.batch_size):
            codes = examples[rng.integers(len(examples))]
            start = rng.integers(max(1, len(codes) - config.max_frames + 1))
            codes = codes[start : start + config.max_frames]
            batch["codes"][row, : len(codes)] = codes
            batch["lengths"][row] = len(codes)
        return batch

    def loss(self, params: dict, state: dict, batch: dict, rng: jax.Array):
        """Batch -> (mean cross-entropy of the hidden codes, (state, metrics))."""
        spec, codes, lengths = self.spec, batch["codes"], batch["lengths"]
        mask = draw_mask(rng, lengths, codes.shape[1], spec.levels)
        semantic, acoustic = codes[..., 0], codes[..., 1:]
        levels = jnp.arange(spec.levels)
        own = levels == mask.level[:, None]  # [B, levels]
        later = levels > mask.level[:, None]
        unknown = (mask.hidden[..., None] & own[:, None]) | (mask.new[..., None] & later[:, None])
        seen = jnp.where(unknown, spec.codebook_size, acoustic)
        valid = jnp.arange(codes.shape[1]) < lengths[:, None]
        logits = self.net.apply({"params": params}, seen, semantic, valid)
        at = mask.level[:, None, None]
        logits = jnp.take_along_axis(logits, at[..., None], axis=2)[:, :, 0]  # [B, N, codes]
        target = jnp.take_along_axis(acoustic, at, axis=2)[..., 0]
        count = jnp.maximum(mask.hidden.sum(), 1)  # a batch may be all padding
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        loss = jnp.sum(jnp.where(mask.hidden, losses, 0)) / count
        right = jnp.sum(mask.hidden & (logits.argmax(-1) == target)) / count
        return loss, (state, {"accuracy": right})

    def to_codec(self, params: dict, state: dict) -> SoundStorm:
        """The model of these parameters."""
        return SoundStorm(self.spec, jax.tree.map(np.asarray, params))

    def read_trained(self, directory: str | Path) -> SoundStorm:
        """The model of a directory."""
        return SoundStorm.from_pretrained(directory)

    def evaluate(self, model: SoundStorm, examples: Sequence[np.ndarray]) -> dict:
        """The share of each level's codes that `generate` gets right, given the first third of a clip."""
        right, total = np.zeros(self.spec.levels), 0
        for codes in examples[: self.config.evaluate_clips]:
            codes = codes[: self.config.max_frames]
            start = len(codes) // 3
            made = model.generate(codes[None, start:, 0], codes[None, :start])[0]
            right += (made[:, 1:] == codes[start:, 1:]).sum(0)
            total += len(made)
        return {"frames": total, "accuracy": [round(float(share), 4) for share in right / max(total, 1)]}


def _read_array(path: Path) -> np.ndarray:
    try:
        codes = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise MediaError("missing file", path) from error
    except (ValueError, EOFError, OSError) as error:
        raise MediaError("not a readable .npy file", path, str(error).splitlines()[0]) from error
    if codes.dtype.kind not in "iu":
        raise UserError(f"{path} holds {codes.dtype}, no whole numbers; codes are whole numbers.")
    return codes
