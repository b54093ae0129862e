"""SEED-2 for users: pictures to 32 codes and, with an unCLIP decoder beside it, back to pictures.

A directory written by `import-seed` has config.json and weights.safetensors; `import-unclip` adds the
directory unclip/ below it. `SeedCodec` fits the contract of `codec.Codec`; `ImageTokenizer` takes whatever
can be a picture and gives codes without the axis of codebooks, of which there is one.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from PIL import Image

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Codec,
    MediaError,
    config_mistakes,
    read_config,
    rectangular,
)
from anygpt_tokenizers.media_image import image_from_array, prepare_image, read_image, write_image
from anygpt_tokenizers.meshes import OnDividedMesh
from anygpt_tokenizers.safetensors_file import map_arrays
from anygpt_tokenizers.seed_layers import laid_apart
from anygpt_tokenizers.seed_layout import shapes_of
from anygpt_tokenizers.seed_net import SeedNet, SeedSpec
from anygpt_tokenizers.unclip import UnclipDecoder

BATCH = 64  # pictures in one call of a program
UNCLIP = "unclip"
PER_PICTURE = {"negative_codes", "latents", "noise", "prompt_embeddings"}  # options of `decode`

Picture = str | os.PathLike | Image.Image | np.ndarray


class SeedCodec(OnDividedMesh, Codec):
    """Pictures uint8 [B, S, S, 3] to codes int32 [B, 32, 1], codes to embeddings and, by unCLIP, to pictures.

    Params are those of `SeedNet`, as they are stored (they stay on disk until they are used). The decoder is
    not part of the hash, since no code depends on it.

    Attributes:
      spec: sizes. net: the Flax module.
      directory: where the codec was read from.
    """

    type = "seed2"
    kind = "image"
    _made_for_mesh = ("weights", "unclip")

    def __init__(self, config: dict, params: dict, directory: str | os.PathLike):
        self._describe(config)
        self.params = params
        self.directory = Path(directory)
        self.spec = spec_from_config(self.config)
        self.dtype = jnp.dtype(self.config["dtype"])
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise UserError(f"{directory}: the dtype {self.dtype} in {CONFIG_FILE} is none of floats.")
        self.net = SeedNet(self.spec, self.dtype)
        self.image_size = self.spec.image_size
        self.fixed_frames = self.spec.num_queries

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Self:
        """Reads what `import-seed` or `save_pretrained` wrote."""
        directory = Path(directory)
        config = read_config(directory)
        if config.get("type") != cls.type:
            raise UserError(f"{directory} holds no SEED-2 tokenizer; import one with import-seed.")
        params = traverse_util.unflatten_dict(map_arrays(directory / WEIGHTS_FILE), sep="/")
        with config_mistakes(directory):
            codec = cls(config, params, directory)
            codec.check_params(directory)
        return codec

    def net_shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.spec)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Copies the codec, the unCLIP decoder included; where it was read from it lies already."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if directory.samefile(self.directory):
            return
        shutil.copyfile(self.directory / WEIGHTS_FILE, directory / WEIGHTS_FILE)
        if (self.directory / UNCLIP).is_dir():
            shutil.copytree(self.directory / UNCLIP, directory / UNCLIP, dirs_exist_ok=True)
        (directory / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n")

    @functools.cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights file."""
        with open(self.directory / WEIGHTS_FILE, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    @functools.cached_property
    def unclip(self) -> UnclipDecoder:
        """The decoder of the directory unclip/, in a dtype of its own; UserError where there is none."""
        directory = self.directory / UNCLIP
        if not (directory / CONFIG_FILE).is_file():
            width, published = self.spec.embed_dim, SeedSpec().embed_dim
            advice = (
                f"run python -m anygpt_jax.convert import-unclip --src=DIFFUSERS_DIR --out={directory}"
                if width == published
                else f"{directory} must hold one for image embeddings of width {width}, which the published "
                f"one, for {published}, is not"
            )
            raise UserError(
                f"{self.directory} has no unCLIP decoder, so its codes can't become pictures; {advice}."
            )
        decoder = UnclipDecoder.from_pretrained(directory)
        if self.mesh:
            decoder.on_mesh(self.mesh, self._axes[0], self._weight_axis)
        return decoder

    @functools.cached_property
    def weights(self) -> dict:
        """The parameters on the devices: float32, but the large matrices in the type of their products."""
        on_one_cpu = jax.default_backend() == "cpu" and self.mesh is None
        params = laid_apart(self.params) if on_one_cpu else self.params
        with jax.ensure_compile_time_eval():  # real arrays also when first asked for inside a jitted function
            return jax.tree.map_with_path(self._placed, params)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> int32 [B, 32, 1]."""
        return self._run("encode", self.check_pixels(samples))[..., None]

    def latents(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> what is quantised, float32 [B, 32, code_dim]."""
        return self._run("latents", self.check_pixels(samples))

    def embed(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [B, 32] or [B, 32, 1] -> embeddings of unCLIP's image encoder, float32 [B, 1024]."""
        return self._run("embed", self.check_codes(codes)[..., 0])

    def decode(
        self,
        codes: np.ndarray,
        key: jax.Array | int = 0,
        guidance: float = 10.0,
        steps: int = 20,
        negative_codes: np.ndarray | None = None,
        **options,
    ) -> np.ndarray:
        """Codes int32 [B, 32] or [B, 32, 1] -> uint8 [B, 768, 768, 3], drawn by unCLIP.

        Args:
          codes: of B pictures.
          key: of the noise that drawing starts from; the same key draws the same picture.
          guidance: how much stronger than without them the codes count.
          steps: of the schedule.
          negative_codes: of what the pictures shall not show, as many as `codes`.
          options: see `UnclipDecoder.decode`, among them `progress` and `schedule`.

        UserError: codes that are not this codec's, or no decoder in the directory.
        """
        codes = self.check_codes(codes)
        if negative_codes is not None:
            negative_codes = self.check_codes(negative_codes)
            if negative_codes.shape != codes.shape:
                count = len(negative_codes)
                raise UserError(f"Give negative codes of {len(codes)} pictures too, not of {count}.")
            options["negative_embeddings"] = self.embed(negative_codes)
        decoder = self.unclip
        return decoder.decode(
            self.embed(codes), key, guidance_scale=guidance, num_inference_steps=steps, **options
        )

    def check_decodable(self) -> None:
        """UserError if there is no decoder, or one for embeddings of another width."""
        takes, width = self.unclip.spec.embedding_dim, self.spec.embed_dim
        if takes != width:
            raise UserError(
                f"{self.directory / UNCLIP} holds an unCLIP decoder for image embeddings of width {takes}, "
                f"but this codec's are of width {width}; put one for those there."
            )

    def encode_many(self, items: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.encode(np.stack(items))) if items else []

    def check_codes(self, codes: np.ndarray, first: int = 0) -> np.ndarray:
        """Codes [B, 32] or [B, 32, 1] as int32 [B, 32, 1]; UserError names what is not this codec's.

        `first` is the number that messages give the first row.
        """
        wanted = self.fixed_frames
        codes = rectangular(codes, wanted)
        if codes.ndim == 3 and codes.shape[-1] == 1:
            codes = codes[..., 0]
        if codes.ndim != 2 or codes.shape[1] != wanted:
            raise UserError(
                f"A picture has {wanted} codes, [batch, {wanted}]; these are {list(codes.shape)}."
            )
        if codes.dtype.kind not in "iu":
            raise UserError(f"Codes are whole numbers; these are {codes.dtype}.")
        wrong = np.argwhere((codes < 0) | (codes >= self.codebook_size))
        if len(wrong):
            row, position = wrong[0]
            raise UserError(
                f"Codes of {self.modality} lie in 0..{self.codebook_size - 1}; position {position} of row "
                f"{first + row} is {codes[row, position]}."
            )
        return codes.astype(np.int32)[..., None]

    def read_file(self, path: str | os.PathLike) -> np.ndarray:
        """A picture file -> uint8 [S, S, 3] by Pillow's bicubic, not cropped; MediaError if unusable.

        Orientation is applied and transparency laid over white; the original code ignores both.
        """
        return read_image(path, self.image_size, draft=False)

    def read(self, picture: Picture) -> np.ndarray:
        """A file, a Pillow image or an array (see `image_from_array`) -> uint8 [S, S, 3], or MediaError."""
        if isinstance(picture, str | os.PathLike):
            return self.read_file(picture)
        if not isinstance(picture, Image.Image):
            picture = image_from_array(picture)
        return prepare_image(picture, self.image_size, draft=False)

    def write(self, samples: np.ndarray, path: str | os.PathLike) -> None:
        write_image(samples, path)

    def _run(self, method: str, batch: np.ndarray) -> np.ndarray:
        """A method of the net on rows of any number, BATCH of them or fewer at a time."""
        devices = self.batch_devices
        outputs = []
        for start in range(0, max(len(batch), 1), BATCH):
            part = batch[start : start + BATCH]
            rows = 1 << max(len(part) - 1, 0).bit_length()  # few shapes, few compilations
            rows = -(-rows // devices) * devices
            padded = np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1)))
            output = _apply(self.net, method, self.weights, self.place(padded))
            outputs.append(np.asarray(output)[: len(part)])
        return np.concatenate(outputs)

    def _placed(self, path: tuple, array: np.ndarray) -> jax.Array:
        large = path[0].key in ("vision", "qformer") and path[-1].key == "kernel"
        array = np.asarray(array, self.dtype if large else np.float32)
        return jax.device_put(array, self.kernel_sharding(array.shape) if large else self.sharding())


class ImageTokenizer:
    """Pictures of any kind to codes [B, 32] and back. Attribute: codec, the `SeedCodec` underneath."""

    def __init__(self, codec: SeedCodec):
        self.codec = codec

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Self:
        """Reads the directory that `import-seed` wrote."""
        return cls(SeedCodec.from_pretrained(directory))

    def encode(self, images: Iterable[Picture]) -> np.ndarray:
        """Files, Pillow images or arrays of any sizes -> int32 [B, 32]; MediaError names an unusable one.

        Arrays are uint8 or floats from 0 to 1, [H, W, 3] each or all together [B, H, W, 3]. UserError: a
        single picture that is not in a list.
        """
        pixels, refused = self._read(images)
        if refused:
            index, error = next(iter(refused.items()))
            raise MediaError(f"image {index} of {len(pixels) + len(refused)}: {error}") from error
        return self._encode(pixels)

    def encode_usable(self, images: Iterable[Picture]) -> tuple[np.ndarray, dict[int, MediaError]]:
        """As `encode`, but an unusable image costs no other: (codes of the rest, what is wrong by index)."""
        pixels, refused = self._read(images)
        return self._encode(pixels), refused

    def embed(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [B, 32] -> float32 [B, 1024], what unCLIP draws a picture from."""
        return self.codec.embed(codes)

    def decode(self, codes: np.ndarray, key: jax.Array | int = 0, **options) -> np.ndarray:
        """Codes int32 [B, 32] -> uint8 [B, 768, 768, 3]; see `SeedCodec.decode`."""
        return self.codec.decode(codes, key, **options)

    def decode_usable(
        self, codes: Sequence[np.ndarray], key: jax.Array | int = 0, **options
    ) -> tuple[np.ndarray, dict[int, UserError]]:
        """As `decode`, but a row that is no picture's codes costs no other.

        Args:
          codes: of any number of pictures; rows may be unusable in any way.
          key: of the noise, which is drawn for the usable rows as if they were all.
          options: as of `decode`; what is given per picture is given for every row of `codes`.

        Returns:
          (pictures of the usable rows uint8 [B, 768, 768, 3], what is wrong with the others by index).
        """
        rows, refused = {}, {}
        for index, row in enumerate(codes):
            try:
                rows[index] = self.codec.check_codes([row], index)[0]
            except UserError as error:
                refused[index] = error
        if not rows:
            size = self.codec.unclip.spec.image_size
            return np.zeros((0, size, size, 3), np.uint8), refused
        for name in PER_PICTURE & set(options):
            if options[name] is not None and len(options[name]) == len(rows) + len(refused):
                options[name] = np.stack([np.asarray(options[name][index]) for index in rows])
        return self.decode(np.stack(list(rows.values())), key, **options), refused

    def _read(self, images: Iterable[Picture]) -> tuple[list[np.ndarray], dict[int, MediaError]]:
        # One picture is iterable too: its rows, or a name's letters, would be taken for pictures.
        axes = getattr(images, "ndim", None)
        if isinstance(images, str | os.PathLike | Image.Image) or axes not in (None, 1, 4):
            shown = f"an array {list(images.shape)}" if axes is not None else repr(images)
            raise UserError(
                f"Give a list of pictures, or an array [batch, height, width, 3], not {shown}; put a single "
                "picture into a list."
            )
        pixels, refused = [], {}
        for index, image in enumerate(images):
            try:
                pixels.append(self.codec.read(image))
            except MediaError as error:
                refused[index] = error
        return pixels, refused

    def _encode(self, pixels: list[np.ndarray]) -> np.ndarray:
        if not pixels:
            return np.zeros((0, self.codec.fixed_frames), np.int32)
        return self.codec.encode(np.stack(pixels))[..., 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(net: SeedNet, method: str, weights: dict, batch: jax.Array) -> jax.Array:
    return net.apply({"params": weights}, batch, method=method)


def spec_from_config(config: dict) -> SeedSpec:
    """The fields of `SeedSpec` in a codec's configuration."""
    values = {field.name: config[field.name] for field in dataclasses.fields(SeedSpec)}
    return SeedSpec(**{**values, "down_dims": tuple(values["down_dims"])})
