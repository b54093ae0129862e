"""Training of the image tokenizer: examples, codebooks, the loss, and figures on held-out pictures."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.image_quantizers import extend_spread, kmeans, principal_basis, spread_book
from anygpt_tokenizers.image_tokenizer import (
    EDGE_DIM,
    POLE,
    FormTokenizer,
    ImageCodec,
    edge_directions,
    from_uint8,
    on_sphere,
    split_patches,
)
from anygpt_tokenizers.manifest import rows_with
from anygpt_tokenizers.media_image import read_image


class ImageTraining:
    """Trains an ImageCodec; the fields of the config are those of configs/tokenizers/image_small.py.

    Training starts from codebooks fitted to the examples. That of tints stays; encoder, codebook and decoder
    of forms learn on together.
    """

    def __init__(self, config):
        self.config = config
        self.name = "image codec"
        self.codec_config = config.codec.to_dict()
        self.module = FormTokenizer(self.codec_config)
        self._split = jax.jit(lambda x: split_patches(from_uint8(x), config.codec.patch_size))

    def read_examples(self, data_dir: str | Path) -> np.ndarray:
        """All pictures of DIR/manifest.jsonl, uint8 [N, S, S, 3]; a broken file raises MediaError."""
        modality, size = self.codec_config["modality"], self.codec_config["image_size"]
        paths = [Path(data_dir) / row[modality] for row in rows_with(data_dir, modality)]
        return np.stack([read_image(path, size) for path in tqdm(paths, desc="read pictures", unit="file")])

    def init(self, rng: jax.Array, examples: np.ndarray) -> tuple[dict, dict]:
        """Parameters of the FormTokenizer, its codebook fitted to the examples, and as state the tints."""
        config, codec = self.config, self.codec_config
        size = codec["codebook_size"]
        random = np.random.default_rng(int(jax.random.bits(rng)))
        chosen = examples[random.permutation(len(examples))[: config.fit_images]]
        all_tints, all_forms = (np.asarray(x) for x in self._split(chosen))
        inked = all_tints.any(axis=-1)
        forms = all_forms[inked]
        if len(forms) < size:
            raise UserError(
                f"{len(forms)} patches with ink are too few for {size} codes; give more pictures."
            )

        params = initial_params(self.module, rng, jnp.asarray(all_forms[:1]))
        basis = principal_basis(forms, codec["form_dim"])
        edges = codec["edge_weight"] * edge_directions(jnp.asarray(forms))
        latents = np.asarray(on_sphere(jnp.asarray(forms @ basis), edges))
        book = kmeans(latents, size - 1, config.fit_iterations, random)
        # Only a code's direction counts; its length sets how fast it turns as it learns.
        params["book"] = POLE * jnp.asarray(_with_paper(book, size))
        params["encoder"]["basis"] = jnp.asarray(basis)
        # At first a code's own picture is drawn by its principal components alone.
        params["decoder"]["basis"] = jnp.asarray(np.pad(basis, ((0, 0), (0, EDGE_DIM))))
        return params, {"tints": jnp.asarray(self._fit_tints(all_tints[inked], size, random))}

    def _fit_tints(self, tints: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """The codebook [size, 3] of tints [M, 3]; code 0 is paper, and so are codes left over."""
        distance = self.config.tint_distance
        book = spread_book(tints, size - 1, distance, self.config.fit_iterations)
        book /= np.linalg.norm(book, axis=1, keepdims=True)
        # Tints that these data lack, for pictures of another kind: spread over what is left of the colours.
        others = rng.random((20_000, 3), np.float32)
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        return _with_paper(extend_spread(book, others, size - 1, distance), size)

    def sample_batch(self, examples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [batch_size, S, S, 3]: pictures, a share of them mirrored and moved."""
        batch = examples[rng.integers(len(examples), size=self.config.batch_size)]
        for row in np.flatnonzero(rng.random(len(batch)) < self.config.augment):
            image = batch[row][:, ::-1] if rng.random() < 0.5 else batch[row]
            batch[row] = _moved(image, *rng.integers(-self.config.move, self.config.move + 1, size=2))
        return batch

    def loss(self, params: dict, state: dict, batch: jax.Array, rng: jax.Array):
        """Batch uint8 [B, S, S, 3] -> (scalar, (state, metrics)); compares ink, [B, S, S]."""
        del rng
        images = from_uint8(batch)
        _, forms = split_patches(images, self.codec_config["patch_size"])
        ink, distance = self.module.apply({"params": params}, forms)
        error = ink - jnp.max(images, axis=-1)
        terms = {
            "l2": jnp.mean(error**2),
            "l1": jnp.mean(jnp.abs(error)),
            "gradient": sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2)),
            "quantizer": distance,
        }
        total = sum(self.config.loss_weights[name] * value for name, value in terms.items())
        return total, (state, {**terms, "psnr": -10.0 * jnp.log10(terms["l2"])})

    def to_codec(self, params: dict, state: dict) -> ImageCodec:
        """The codec with these weights, rounded as they are stored."""
        return ImageCodec(self.codec_config, {"forms": params, "tints": state["tints"]})

    def read_trained(self, directory: str | Path) -> ImageCodec:
        """The codec of a directory."""
        return ImageCodec.from_pretrained(directory)

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

    `entropy_bits_per_image` is, per codebook, the sum over positions of the entropy of the code at that
    position: the cost of a picture to a model that knows nothing but where it is. `most_common_share` is that
    of the code seen most often (paper, in the small world).
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


def _with_paper(book: np.ndarray, size: int) -> np.ndarray:
    """The book [size, D]: zeros, the given rows, zeros."""
    return np.pad(book.astype(np.float32), ((1, size - 1 - len(book)), (0, 0)))


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
