"""What training of SEED's tokenizer reads (pictures, captions, a teacher's embeddings) and writes."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from PIL import Image

from anygpt_tokenizers.audio_examples import Clips, random_clip, read_features
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import CONFIG_FILE, WEIGHTS_FILE, MediaError, read_config
from anygpt_tokenizers.fresh_weights import initial_params
from anygpt_tokenizers.manifest import CAPTION, rows_with
from anygpt_tokenizers.media_image import read_image
from anygpt_tokenizers.safetensors_file import map_arrays, write_arrays
from anygpt_tokenizers.seed_net import SeedNet, SeedSpec

PARTS = ("vision", "vision_norm", "qformer")  # of SeedNet's parameters, what the first stage gives the second
STAGE1 = "seed2_stage1"  # the type of the first stage's directories
SEED = "seed2"


class Example(NamedTuple):
    """A picture uint8 [S, S, 3], its caption, and its teacher's embedding float32 [E] if there is a file."""

    pixels: np.ndarray
    caption: str
    embedding: np.ndarray | None


def read_pictures(config, data_dir: str | Path, embeddings: str = "") -> Sequence[Example]:
    """The rows of DIR/manifest.jsonl with a picture, a "text" and, if it is named, the field `embeddings`.

    With `config.keep_in_memory` they are read now, else whenever they are drawn; MediaError names a file that
    can't be used. Pictures are squares of `config.codec.image_size`, or larger by what cropping takes away.
    """
    fields = [config.codec.modality, CAPTION, *([embeddings] if embeddings else [])]
    rows = rows_with(data_dir, *fields)
    # The smallest crop then has as many pixels as the network sees.
    size = round(config.codec.image_size / config.crop_scale[0] ** 0.5)
    read = functools.partial(
        _read_example,
        folder=Path(data_dir),
        fields=fields,
        size=size,
        width=config.codec.embed_dim,
    )
    return Clips(rows, read, config.keep_in_memory)


def _read_example(row: dict, folder: Path, fields: list[str], size: int, width: int) -> Example:
    pixels, caption = read_image(folder / row[fields[0]], size), row[CAPTION]
    if any("\ud800" <= character <= "\udfff" for character in caption):  # JSON can say so, UTF-8 can't
        raise MediaError("a text that has half a character", folder / row[fields[0]], repr(caption[:100]))
    if len(fields) == 2:
        return Example(pixels, caption, None)
    path = folder / row[fields[2]]
    embedding = read_features(path)
    if embedding.shape != (width,):
        raise UserError(
            f"{path}: an embedding has the shape [{width}] (config.codec.embed_dim), "
            f"not {list(embedding.shape)}."
        )
    if not np.isfinite(embedding).all():
        raise MediaError("an embedding that is not finite", path)
    return Example(pixels, caption, embedding.astype(np.float32))


def draw(config, examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """`config.batch_size` examples, cropped and mirrored as the config says; broken files are skipped."""
    drawn = [random_clip(examples, rng) for _ in range(config.batch_size)]
    size, scale, flip = config.codec.image_size, config.crop_scale, config.flip
    return [example._replace(pixels=cropped(example.pixels, size, scale, flip, rng)) for example in drawn]


def centred(config, examples: Sequence[Example]) -> list[Example]:
    """The first `config.evaluate_pictures` examples, whole; files that can't be used are left out."""
    whole, rng = [], np.random.default_rng(0)
    for index in range(min(len(examples), config.evaluate_pictures)):
        try:
            example = examples[index]
        except MediaError:
            continue
        pixels = cropped(example.pixels, config.codec.image_size, (1.0, 1.0), False, rng)
        whole.append(example._replace(pixels=pixels))
    if not whole:
        raise UserError(
            "None of the held-out pictures can be used; look at the files that the manifest names."
        )
    return whole


def cropped(
    pixels: np.ndarray, size: int, scale: tuple[float, float], flip: bool, rng: np.random.Generator
) -> np.ndarray:
    """A random part of a picture uint8 [S, S, 3], perhaps mirrored -> uint8 [size, size, 3], by bicubic.

    The part's area is a share in `scale` of the whole and its aspect 3:4 to 4:3, if it fits, as in
    torchvision's RandomResizedCrop; but aspects count in the square that the picture was made.
    """
    full = len(pixels)
    area, aspect = rng.uniform(*scale), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width, height = (min(1.0, (area * factor) ** 0.5) * full for factor in (aspect, 1 / aspect))
    if scale[0] >= 1:
        width = height = full
    left, top = rng.uniform(0, full - width), rng.uniform(0, full - height)
    image = Image.fromarray(pixels)
    box = (left, top, left + width, top + height)
    part = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
    return part[:, ::-1] if flip and rng.random() < 0.5 else part


def spec_of(codec: Mapping) -> SeedSpec:
    """The sizes in `config.codec`."""
    return SeedSpec(**{name: codec[name] for name in SeedSpec.__dataclass_fields__})


def fresh_params(spec: SeedSpec, rng: jax.Array) -> dict:
    """Random parameters of a `SeedNet`."""
    pixels = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.uint8)
    return dict(initial_params(SeedNet(spec), rng, pixels))


def read_parts(directory: str, parts: Sequence[str], spec: SeedSpec) -> dict:
    """The parameters of `parts` in a directory of stage 1 or of a SEED codec, float32.

    UserError: it is neither, a part isn't there, or its sizes are not those of `spec`.
    """
    kind = read_config(Path(directory)).get("type")
    if kind not in (STAGE1, SEED):
        raise UserError(f"{directory} (config.init_from) is of type {kind!r}, neither {STAGE1} nor {SEED}.")
    stored = map_arrays(Path(directory) / WEIGHTS_FILE)
    pixels = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.uint8)
    wanted = jax.eval_shape(SeedNet(spec).init, jax.random.key(0), pixels)["params"]
    wanted = traverse_util.flatten_dict({part: wanted[part] for part in parts}, sep="/")
    for name, leaf in wanted.items():
        found = stored[name].shape if name in stored else None
        if found != leaf.shape:
            what = f"has the shape {list(found)}" if found else "is missing"
            raise UserError(
                f"{directory} (config.init_from): {name} {what}; config.codec makes it {list(leaf.shape)}."
            )
    arrays = {name: jnp.asarray(np.asarray(stored[name], np.float32)) for name in wanted}
    return traverse_util.unflatten_dict(arrays, sep="/")


class Unsaved:
    """Parameters on their way to a directory with config.json and weights.safetensors."""

    def __init__(self, config: dict, params: dict):
        self.config, self.params = config, params

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes both files, each all at once."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        flat = traverse_util.flatten_dict(self.params, sep="/")
        shapes = {name: flat[name].shape for name in sorted(flat)}
        partial = directory / f".{WEIGHTS_FILE}.partial"
        dtype = jnp.dtype(self.config["storage_dtype"])
        write_arrays(partial, shapes, dtype, lambda name: np.asarray(flat[name]))
        partial.replace(directory / WEIGHTS_FILE)
        partial = directory / f".{CONFIG_FILE}.partial"
        partial.write_text(json.dumps(self.config, indent=2) + "\n")
        partial.replace(directory / CONFIG_FILE)


def codec_config(config, kind: str) -> dict:
    """What config.json of a directory of type `kind` says."""
    return {"num_codebooks": 1, **config.codec.to_dict(), "type": kind}
