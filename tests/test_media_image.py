"""Reading pictures: what is understood, and what is refused with which reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.media_image import prepare_image, read_image, write_image
from PIL import Image, features

RED, WHITE = (255, 0, 0), (255, 255, 255)


def halves(size=(64, 64), left=RED, right=(0, 0, 255)) -> Image.Image:
    """The left half in one colour, the right half in another."""
    image = Image.new("RGB", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def reason_of(path) -> str:
    with pytest.raises(MediaError) as caught:
        read_image(path, 64)
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_a_picture_of_the_right_size_is_read_unchanged(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_image(image, tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 64), image)


def test_any_proportions_become_the_square(tmp_path):
    halves((300, 90)).save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg", 64)
    assert read.shape == (64, 64, 3) and read.dtype == np.uint8
    assert np.abs(read[32, 10].astype(int) - RED).max() < 12
    assert np.abs(read[32, 54].astype(int) - (0, 0, 255)).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "I", "F"])
def test_every_colour_mode_is_understood(mode):
    gray = halves(left=WHITE, right=(0, 0, 0)).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(gray, np.uint16) * 257)
        assert image.mode == mode
    elif mode == "I":
        image = Image.fromarray(np.asarray(gray, np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(gray, np.float32) / 255)
    else:
        image = gray.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else gray.convert(mode)
    read = prepare_image(image, 64).astype(int)
    assert np.abs(read[32, 10] - 255).max() <= 2 and read[32, 54].max() <= 2


@pytest.mark.parametrize(("largest", "read"), [(200, 200), (255, 255), (256, 1), (32896, 128)])
def test_32_bit_integers_are_of_8_bits_where_all_fit_and_else_of_16(largest, read):
    pixels = np.zeros((64, 64), np.int32)
    pixels[:, 32:] = largest
    image = prepare_image(Image.fromarray(pixels), 64)
    assert not image[:, :32].any() and (image[:, 32:] == read).all()
    dark = prepare_image(Image.fromarray(pixels.astype(np.uint16)), 64)
    assert (dark[:, 32:] == round(largest / 257)).all()  # known to be of 16 bits


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    halves().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg", 64)[32, 10].astype(int) - RED).max() < 20


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.full((64, 64), 32896, np.uint16)).save(path)
    assert np.abs(read_image(path, 64).astype(int) - 128).max() <= 1


def test_transparency_is_laid_over_white(tmp_path):
    image = halves().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0] * 32 + [128] * 32], 64, 0).astype(np.uint8)))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 64)
    assert tuple(read[5, 5]) == WHITE
    assert np.abs(read[5, 60].astype(int) - (127, 127, 255)).max() <= 2


def test_a_transparent_palette_colour_is_laid_over_white(tmp_path):
    image = halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    read = read_image(tmp_path / "a.png", 64)
    assert tuple(read[5, 5]) == WHITE and tuple(read[5, 60]) == (0, 0, 255)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left in the file belongs on top
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "a.jpg", 64).astype(int)
    assert np.abs(read[5, 32] - RED).max() < 20 and np.abs(read[58, 32] - (0, 0, 255)).max() < 20


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (64, 64), color) for color in (RED, (0, 255, 0))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert np.abs(read_image(tmp_path / f"a.{suffix}", 64)[32, 32].astype(int) - RED).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_fifty_megapixels_are_read(tmp_path, suffix):
    Image.new("RGB", (10_000, 5_000), RED).save(tmp_path / f"a.{suffix}")
    assert np.abs(read_image(tmp_path / f"a.{suffix}", 64).astype(int) - RED).max() <= 2


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 10_000, 60_000])
def test_a_decompression_bomb_is_refused_unopened(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    assert reason_of(tmp_path / "a.png") == "too many pixels"


def test_a_missing_file_and_a_folder_are_missing(tmp_path):
    assert reason_of(tmp_path / "none.png") == "missing file"
    assert reason_of(tmp_path) == "missing file"


def test_an_empty_file_is_named_so(tmp_path):
    (tmp_path / "a.png").touch()
    assert reason_of(tmp_path / "a.png") == "empty file"


def test_what_is_no_image_is_named_so(tmp_path):
    (tmp_path / "a.png").write_text("once upon a time")
    assert reason_of(tmp_path / "a.png") == "not an image"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert reason_of(tmp_path / f"a.{suffix}") in ("damaged image", "not an image")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
def test_damaged_bytes_never_crash(tmp_path, suffix):
    halves().save(tmp_path / f"whole.{suffix}")
    whole = bytearray((tmp_path / f"whole.{suffix}").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 8):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            assert read_image(tmp_path / "a", 64).shape == (64, 64, 3)
        except MediaError as error:
            assert error.reason in ("damaged image", "not an image", "too many pixels")


def damaged_avif() -> bytes:
    """An AVIF whose coded pixels are all flipped."""
    file = io.BytesIO()
    halves().save(file, "AVIF")
    head, name, pixels = file.getvalue().partition(b"mdat")
    return head + name + bytes(byte ^ 255 for byte in pixels)


def damaged_blp() -> bytes:
    """A BLP of an unknown compression."""
    file = io.BytesIO()
    halves().convert("P").save(file, "BLP")
    data = bytearray(file.getvalue())
    data[4:8] = struct.pack("<i", 9)
    return bytes(data)


def unknown_dds() -> bytes:
    """A DDS that says of its pixels nothing that is known."""
    return b"DDS |\0\0\0\7\x10\0\0" + bytes(200)


no_avif = pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")


@pytest.mark.parametrize("make", [pytest.param(damaged_avif, marks=no_avif), damaged_blp, unknown_dds])
def test_what_a_decoder_gives_up_on_is_a_damaged_image(tmp_path, make):
    (tmp_path / "a").write_bytes(make())
    assert reason_of(tmp_path / "a") == "damaged image"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_tiff_with_a_value_that_is_no_finite_number_is_refused(tmp_path, value):
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[2, 3] = value
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    sentence = r"a\.tiff: pixels that are not finite numbers \(the first at \[2, 3\]"
    with pytest.raises(MediaError, match=sentence):
        read_image(tmp_path / "a.tiff", 64)
