"""A codec: media in, discrete codes out, and back.

`Codec` is the host-side object that everything outside this package uses. It holds the weights of a pure Flax
module, batches its calls and knows how to read and write files of its medium. Subclasses:
`audio_codec.AudioCodec`, `published_codec.PublishedCodec`, `image_tokenizer.ImageCodec`, `seed.SeedCodec` and
`vqgan.VqganCodec`.
"""

import abc
import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from flax.errors import FlaxError

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.field_kinds import check_kind

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
SHIPPED = Path(__file__).parent / "weights"

# The value of "type" in config.json -> where the class lives (imported only when needed).
CODEC_CLASSES = {
    "seanet": "anygpt_tokenizers.audio_codec:AudioCodec",
    "speechtokenizer": "anygpt_tokenizers.speechtokenizer:SpeechTokenizer",
    "encodec": "anygpt_tokenizers.encodec:Encodec",
    "vit_vq": "anygpt_tokenizers.image_tokenizer:ImageCodec",
    "seed2": "anygpt_tokenizers.seed:SeedCodec",
    "vqgan": "anygpt_tokenizers.vqgan:VqganCodec",
}


# What making a net of values that make none raises, beside KeyError for one that isn't there.
NO_NET = (TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, FlaxError)


class MediaError(UserError):
    """A media file that cannot be used; `reason` is a short phrase that many files can be counted under."""

    def __init__(self, reason: str, path: str | os.PathLike | None = None, detail: str = ""):
        self.reason = reason
        self.path = path
        place = f"{os.fspath(path)}: " if path is not None else ""
        super().__init__(f"{place}{reason}{f' ({detail})' if detail else ''}")


class Codec(abc.ABC):
    """Weights plus configuration of one codec.

    Attributes:
      modality: name of the medium, such as "speech".
      kind: "audio" or "image".
      num_codebooks, codebook_size: codes of one frame, and how many values each can take.
      sample_rate, hop_length, frame_rate: for audio, else None.
      image_size, fixed_frames: for images, else None.
      config: the JSON-able configuration that `save_pretrained` writes.
      params: nested dict of float32 arrays, already rounded to the precision they are stored in.
      hash: first 16 hex digits of the SHA-256 of the weights file.
    """

    type: ClassVar[str]
    kind: ClassVar[str]
    sample_rate: int | None = None
    hop_length: int | None = None
    frame_rate: float | None = None
    image_size: int | None = None
    fixed_frames: int | None = None

    def __init__(self, config: dict, params: dict):
        self._describe(config)
        storage = np.dtype(config.get("storage_dtype", "float32"))
        flat = traverse_util.flatten_dict(params, sep="/")
        stored = {
            name: np.ascontiguousarray(np.asarray(value, storage)) for name, value in sorted(flat.items())
        }
        self._weights = safetensors.numpy.save(stored)
        self.hash = hashlib.sha256(self._weights).hexdigest()[:16]
        self.params = traverse_util.unflatten_dict(
            {name: value.astype(np.float32) for name, value in stored.items()}, sep="/"
        )

    def _describe(self, config: dict) -> None:
        self.config = json.loads(json.dumps({**config, "type": self.type}))
        for name in ("num_codebooks", "codebook_size"):
            check_kind(name, config[name], int)
        self.modality: str = config["modality"]
        self.num_codebooks: int = config["num_codebooks"]
        self.codebook_size: int = config["codebook_size"]

    @abc.abstractmethod
    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Samples [B, ...] -> int32 codes [B, frames, codebooks]."""

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32 codes [B, frames, codebooks] -> samples [B, ...] of the form that `encode` takes."""

    def check_decodable(self) -> None:  # noqa: B027 - most codecs can
        """UserError if `decode` lacks something, so that nobody generates codes for nothing."""

    @abc.abstractmethod
    def read_file(self, path: str | os.PathLike) -> np.ndarray:
        """Reads one file as samples without the batch axis; raises MediaError if it cannot be used."""

    @abc.abstractmethod
    def write(self, samples: np.ndarray, path: str | os.PathLike) -> None:
        """Writes the samples of one item (no batch axis) to a file."""

    def encode_many(self, items: list[np.ndarray]) -> list[np.ndarray]:
        """Encodes items (no batch axis, lengths may differ) to a list of int32 [frames, codebooks]."""
        return [self.encode(item[None])[0] for item in items]

    def encode_file(self, path: str | os.PathLike) -> np.ndarray:
        """One file -> int32 [frames, codebooks]; raises MediaError if it cannot be used."""
        return self.encode(self.read_file(path)[None])[0]

    def check_pixels(self, samples: np.ndarray) -> np.ndarray:
        """Pictures as an array [B, S, S, 3]; UserError if they aren't uint8 of this codec's size."""
        samples, size = np.asarray(samples), self.image_size
        if samples.dtype != np.uint8 or samples.shape[1:] != (size, size, 3):
            raise UserError(
                f"The {self.modality} codec encodes uint8 [batch, {size}, {size}, 3], not {samples.dtype} "
                f"{list(samples.shape)}; `read_file` prepares pictures of other sizes and kinds."
            )
        return samples

    def check_codes(self, codes: np.ndarray) -> np.ndarray:
        """Codes as int32 [B, frames, codebooks]; UserError if the shape or a value is not this codec's."""
        codes = rectangular(codes)
        if codes.ndim != 3 or codes.shape[-1] != self.num_codebooks or codes.shape[1] == 0:
            raise UserError(
                f"The {self.modality} codec decodes codes of shape [batch, frames, {self.num_codebooks}] "
                f"with at least one frame, not {list(codes.shape)}."
            )
        return self.checked_range(codes)

    def checked_range(self, codes: np.ndarray, first: int = 0, start: int = 0) -> np.ndarray:
        """Codes [B, n, m] of frames start.. and levels first.. as int32; UserError names one out of range."""
        if codes.dtype.kind not in "iu":
            raise UserError(f"Codes of {self.modality} are whole numbers, not {codes.dtype}.")
        wrong = np.argwhere((codes < 0) | (codes >= self.codebook_size))
        if len(wrong):
            row, frame, level = wrong[0]
            raise UserError(
                f"Codes of {self.modality} lie in 0..{self.codebook_size - 1}; row {row}, "
                f"frame {start + frame}, level {first + level} is {codes[row, frame, level]}."
            )
        return codes.astype(np.int32)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes config.json and weights.safetensors, each all at once."""
        write_directory(Path(directory), self.config, self._weights)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Self:
        """Reads what `save_pretrained` wrote; the hash is the same again."""
        config, params = read_directory(Path(directory))
        with config_mistakes(Path(directory)):
            codec = cls(config, params)
            codec.check_params(directory)
        return codec

    def net_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shapes of all `params` by name ("forms/book") as the configuration asks for them.

        None where they are not known.
        """
        return None

    def check_params(self, directory: str | os.PathLike) -> None:
        """UserError names the first parameter that is not what the configuration asks for."""
        shapes = self.net_shapes()
        if shapes is not None:
            check_shapes(self.params, shapes, directory)


def load_codec(directory: str | os.PathLike) -> Codec:
    """Loads the codec of a directory with config.json and weights.safetensors, whatever its type."""
    config = read_config(Path(directory))
    if config.get("type") not in CODEC_CLASSES:
        raise UserError(
            f"{directory}: unknown codec type {config.get('type')!r}; known: {', '.join(CODEC_CLASSES)}."
        )
    module, _, name = CODEC_CLASSES[config["type"]].partition(":")
    return getattr(importlib.import_module(module), name).from_pretrained(directory)


def shipped_codec(modality: str) -> Codec:
    """The small trained codec of a medium that comes with this package ("speech", "music" or "image")."""
    if not (SHIPPED / modality / CONFIG_FILE).is_file():
        have = sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))
        raise UserError(f"No codec for {modality!r} is shipped; there are: {', '.join(have) or 'none'}.")
    return load_codec(SHIPPED / modality)


def rectangular(codes: Sequence, length: int | None = None) -> np.ndarray:
    """Rows of codes as one array; UserError names the first that hasn't `length`, or that of row 0."""
    try:
        return np.asarray(codes)
    except ValueError as error:  # numpy's says neither which row nor what is expected of it
        lengths = [len(row) if hasattr(row, "__len__") else 1 for row in codes]
        length = length or lengths[0]
        row = next((row for row, found in enumerate(lengths) if found != length), None)
        if row is None:
            raise UserError(f"The rows of codes are not all of one shape: {error}.") from error
        raise UserError(f"Row {row} of the codes has the length {lengths[row]}, not {length}.") from error


def shapes_of_net(net: nn.Module, *inputs: jax.ShapeDtypeStruct, prefix: str = "") -> dict[str, tuple]:
    """By name, the shapes of the parameters that a Flax module has for such inputs; computes nothing."""
    params = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return {prefix + name: leaf.shape for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def check_shapes(params: dict, shapes: dict[str, tuple[int, ...]], directory: str | os.PathLike) -> None:
    """UserError names the first parameter that is missing, of another shape, or not in `shapes`."""
    found = {name: np.shape(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    for name in [*shapes, *found]:
        if name not in shapes or found.get(name) != tuple(shapes[name]):
            what = f"has the shape {list(found[name])}" if name in found else "is missing"
            wanted = list(shapes[name]) if name in shapes else "none"
            raise UserError(
                f"{directory}: {name} {what} in {WEIGHTS_FILE}, but {CONFIG_FILE} asks for {wanted}; the two "
                "don't belong together, so copy or import the codec again."
            )


def in_batches(function: Callable[[np.ndarray], np.ndarray], batch: np.ndarray, size: int = 32) -> np.ndarray:
    """Applies `function` to parts of at most `size` rows and joins the results, none of no rows.

    Parts are padded with zero rows to a power of two, so that a jitted function sees few shapes.
    """
    outputs = []
    for start in range(0, max(len(batch), 1), size):
        part = batch[start : start + size]
        rows = 1 << max(len(part) - 1, 0).bit_length()
        padded = np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1)))
        outputs.append(np.asarray(function(padded))[: len(part)])
    return np.concatenate(outputs)


def write_directory(directory: Path, config: dict, weights: bytes) -> None:
    """Writes config.json and weights.safetensors; whoever reads a file meanwhile finds the old or the new."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    for name, data in ((WEIGHTS_FILE, weights), (CONFIG_FILE, text.encode())):
        partial = directory / f".{name}.partial"
        partial.write_bytes(data)
        partial.replace(directory / name)


def read_config(directory: Path) -> dict:
    """The configuration of a directory with config.json and weights.safetensors."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise UserError(f"{directory} is not a codec: it has no {name}.")
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
    except ValueError as error:
        raise _damaged(directory, error) from error
    if not isinstance(config, dict):
        raise UserError(f"{directory / CONFIG_FILE} is no configuration: it holds no object of JSON.")
    return config


@contextlib.contextmanager
def config_mistakes(directory: Path, file: str = CONFIG_FILE) -> Iterator[None]:
    """What is raised over a field that is missing or unusable becomes one sentence that names the file.

    `file`: of the directory; "" where the fields are from several.
    """
    file, advice = directory / file, "copy or import the codec again" if file else "get its files again"
    try:
        yield
    except UserError as error:
        if str(error).startswith(os.fspath(directory)):
            raise
        raise UserError(f"{file}: {error}") from error
    except KeyError as error:
        raise UserError(f"{file} has no field {error}; {advice}.") from error
    except NO_NET as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} has a field that can't be used ({line}); {advice}.") from error


def read_directory(directory: Path) -> tuple[dict, dict]:
    """(config, parameters) of a directory with config.json and weights.safetensors."""
    config = read_config(directory)
    try:
        flat = safetensors.numpy.load((directory / WEIGHTS_FILE).read_bytes())
    except (ValueError, safetensors.SafetensorError) as error:
        raise _damaged(directory, error) from error
    return config, traverse_util.unflatten_dict(flat, sep="/")


def _damaged(directory: Path, error: Exception) -> UserError:
    return UserError(f"{directory} holds a damaged codec ({error}); copy or train it again.")
