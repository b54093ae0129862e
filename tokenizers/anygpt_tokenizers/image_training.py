"""Training of the image tokenizer: what an example is, the loss, and how a codec is judged on held-out pictures."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.image_tokenizer import ImageCodec, ImageTokenizer, from_uint8
from anygpt_tokenizers.media_image import read_image


class ImageTraining:
    """Trains an ImageTokenizer on a directory of pictures; see configs/tokenizers/image_small.py."""

    def __init__(self, config):
        self.config = config
        self.codec_config = config.codec.to_dict()
        self.module = ImageTokenizer(self.codec_config)

    def read_examples(self, data_dir: str | Path) -> np.ndarray:
        """All pictures of DIR/manifest.jsonl, uint8 [N, S, S, 3]; a broken file raises MediaError."""
        manifest = Path(data_dir) / "manifest.jsonl"
        if not manifest.is_file():
            raise UserError(f"There is no {manifest}; --data must name a directory with a manifest.jsonl.")
        modality, size = self.codec_config["modality"], self.codec_config["image_size"]
        rows = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
        paths = [manifest.parent / row[modality] for row in rows if modality in row]
        if not paths:
            raise UserError(f"{manifest} has no row with {modality!r}.")
        return np.stack([read_image(path, size) for path in tqdm(paths, desc="read pictures", unit="file")])

    def init(self, rng: jax.Array, examples: np.ndarray) -> tuple[dict, dict]:
        """Fresh parameters and an empty state."""
        images = from_uint8(examples[:1])
        keep = jnp.ones((1, self.codec_config["num_codebooks"]))
        return jax.jit(self.module.init)(rng, images, keep)["params"], {}

    def sample_batch(self, examples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [batch_size, S, S, 3]: pictures, a share of them mirrored, moved, or with their colours exchanged.

        The latter keep the codec from learning the colours and places of the training set by heart.
        """
        batch = examples[rng.integers(len(examples), size=self.config.batch_size)]
        changed = rng.random(len(batch)) < self.config.augment
        for row in np.flatnonzero(changed):
            image = batch[row]
            if rng.random() < 0.5:
                image = image[:, ::-1]
            if rng.random() < 0.5:
                image = image[..., rng.permutation(3)]
            batch[row] = _moved(image, *rng.integers(-self.config.move, self.config.move + 1, size=2))
        return batch

    def loss(self, params: dict, state: dict, batch: jax.Array, rng: jax.Array):
        """Batch uint8 [B, S, S, 3] -> (scalar, (state, metrics))."""
        config = self.config
        images = from_uint8(batch)
        coarse_only = jax.random.bernoulli(rng, config.detail_dropout, (len(batch), 1))
        finer = jnp.repeat(1.0 - coarse_only, self.codec_config["num_codebooks"] - 1, axis=1)
        keep = jnp.concatenate([jnp.ones_like(finer[:, :1]), finer], axis=1)
        output, _, quantizer_loss = self.module.apply({"params": params}, images, keep)
        error = output - images
        terms = {
            "l2": jnp.mean(error**2),
            "l1": jnp.mean(jnp.abs(error)),
            "gradient": sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2)),
            "quantizer": quantizer_loss,
        }
        total = sum(config.loss_weights[name] * value for name, value in terms.items())
        return total, (state, {**terms, "psnr": -10.0 * jnp.log10(terms["l2"])})

    def to_codec(self, params: dict, state: dict) -> ImageCodec:
        """The codec with these weights, rounded as they are stored."""
        del state
        return ImageCodec(self.codec_config, params)

    def evaluate(self, codec: ImageCodec, examples: np.ndarray) -> dict:
        """Reconstruction error and use of the codes on held-out pictures uint8 [N, S, S, 3]."""
        codes = codec.encode(examples)
        error = codec.decode(codes).astype(np.float64) - examples
        mse = np.maximum(np.mean(error**2, axis=(1, 2, 3)), 1e-3)
        return {
            "psnr_db": round(float(np.mean(10 * np.log10(255**2 / mse))), 2),
            "mean_absolute_error": round(float(np.mean(np.abs(error))), 3),
            **code_statistics(codes, codec.codebook_size),
        }


def code_statistics(codes: np.ndarray, codebook_size: int) -> dict:
    """How many codes [B, N, K] use, and how well a language model could guess them.

    `entropy_bits_per_image` is the sum over positions of the entropy of the code at that position: the cost of a
    picture to a model that knows nothing but where it is. `most_common_share` is, per codebook, that of the code seen
    most often (paper, in the small world).
    """
    _, positions, codebooks = codes.shape
    overall = [np.bincount(codes[..., k].ravel(), minlength=codebook_size) for k in range(codebooks)]
    entropies = [
        [_entropy(np.bincount(codes[:, n, k], minlength=codebook_size)) for n in range(positions)]
        for k in range(codebooks)
    ]
    return {
        "codes_used": [int(np.count_nonzero(counts)) for counts in overall],
        "perplexity": [round(2 ** _entropy(counts), 2) for counts in overall],
        "most_common_share": [round(float(counts.max() / counts.sum()), 4) for counts in overall],
        "entropy_bits_per_image": [round(float(sum(row)), 2) for row in entropies],
    }


def _entropy(counts: np.ndarray) -> float:
    """Bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log2(shares)))


def _moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The picture shifted by whole pixels, white coming in."""
    height, width, _ = image.shape
    page = np.full_like(image, 255)
    rows = slice(max(down, 0), height + min(down, 0))
    columns = slice(max(right, 0), width + min(right, 0))
    page[rows, columns] = image[
        max(-down, 0) : height - max(down, 0),
        max(-right, 0) : width - max(right, 0),
    ]
    return page
