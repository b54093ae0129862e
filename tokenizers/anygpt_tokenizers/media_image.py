"""Reading and writing pictures, whatever their size, colour mode or defects."""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anygpt_tokenizers.codec import MediaError

MAX_PIXELS = 80_000_000  # below Pillow's own alarm at 89 million
DRAFT_PIXELS = 16_000_000  # a JPEG above this is decoded at a fraction of its size

# What Pillow's decoders raise on damaged files of one format or another.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,  # of AVIF's decoder, and as NotImplementedError where a DDS or BLP names an unknown form
    struct.error,
    zlib.error,
)


def read_image(path: str | os.PathLike, size: int, draft: bool = True) -> np.ndarray:
    """Reads a picture file as uint8 [size, size, 3].

    The EXIF orientation is applied, transparency is laid over white, and any colour mode becomes RGB; of an
    animation the first frame is taken. The picture is resized straight to the square (bicubic), as SEED does.
    With `draft`, very large JPEGs are decoded at a fraction of their size, which changes pixels a little.

    Raises:
      MediaError: missing file, empty file, not an image, too many pixels, damaged image.
    """
    if not os.path.isfile(path):
        raise MediaError("missing file", path)
    if os.path.getsize(path) == 0:
        raise MediaError("empty file", path)
    with _media_errors(path), Image.open(path) as image:
        return prepare_image(image, size, path, draft)


def prepare_image(
    image: Image.Image, size: int, path: str | os.PathLike | None = None, draft: bool = True
) -> np.ndarray:
    """A Pillow image, loaded or just opened -> uint8 [size, size, 3].

    Raises:
      MediaError: too many pixels or none, float pixels that are not finite, a damaged or closed image, a mode
        that Pillow cannot convert.
    """
    with _media_errors(path):
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise MediaError("too many pixels", path, f"{image.width}×{image.height}")
        if not pixels:
            raise MediaError("no pixels", path, f"{image.width}×{image.height}")
        if draft and pixels > DRAFT_PIXELS:
            image.draft(None, (4 * size, 4 * size))
        image.load()
        image = _to_rgb(ImageOps.exif_transpose(image), path)
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.array(image, np.uint8)


def image_from_array(pixels: np.ndarray) -> Image.Image:
    """Pixels [H, W] or [H, W, 1, 3 or 4], uint8 or floats from 0 to 1 -> a Pillow image.

    MediaError: another shape or type, or floats that are not finite or out of range.
    """
    try:
        pixels = np.asarray(pixels)
    except ValueError as error:  # lists whose lengths differ
        raise MediaError("not a picture's shape", detail=_first_line(error)) from error
    if pixels.ndim not in (2, 3) or pixels.size == 0 or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise MediaError("not a picture's shape", detail=f"{list(pixels.shape)}, not [H, W, 3]")
    if pixels.dtype.kind == "f":
        _check_finite(pixels)
        if pixels.min() < 0 or pixels.max() > 1:
            detail = f"they reach from {pixels.min():g} to {pixels.max():g}"
            raise MediaError("float pixels outside 0..1", detail=detail)
        pixels = np.rint(255 * pixels).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise MediaError("pixels of an unknown type", detail=f"{pixels.dtype}, neither uint8 nor floats")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def write_image(samples: np.ndarray, path: str | os.PathLike) -> None:
    """Writes uint8 [H, W, 3]; the format follows the name (.png, .jpg)."""
    Image.fromarray(np.asarray(samples, np.uint8)).save(path)


def _to_rgb(image: Image.Image, path: str | os.PathLike | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_to_gray(image, path)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image.convert("RGB")


def _deep_to_gray(image: Image.Image, path: str | os.PathLike | None) -> Image.Image:
    # Pillow's own conversion of 16-bit gray clips at 255 instead of scaling. Floats count as 0..1, or 0..255.
    # 32-bit integers hold either 16 bits or 8; where all of them fit into 8 they are taken as such, since a
    # 16-bit picture that dark would be black anyway.
    values = np.asarray(image, np.float32)
    if image.mode == "F":
        _check_finite(values, path)
        values = values * (255.0 if values.max(initial=0.0) <= 1.0 else 1.0)
    elif image.mode != "I" or values.max(initial=0.0) > 255.0:
        values = values / 257.0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _check_finite(pixels: np.ndarray, path: str | os.PathLike | None = None) -> None:
    finite = np.isfinite(pixels)
    if not finite.all():
        place = np.argwhere(~finite)[0].tolist()
        raise MediaError("pixels that are not finite numbers", path, f"the first at {place}")


@contextlib.contextmanager
def _media_errors(path: str | os.PathLike | None) -> Iterator[None]:
    """Whatever Pillow raises within, of a file or of an image given as such, becomes a MediaError."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise MediaError("not an image", path) from error
    except Image.DecompressionBombError as error:
        raise MediaError("too many pixels", path, _first_line(error)) from error
    except _DECODE_ERRORS as error:
        raise MediaError("damaged image", path, _first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
