"""Importing MaskGIT's checkpoints: the published layout, a net restated from it, mistakes named."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.maskgit_importer import import_maskgit
from flax import serialization
from jax import lax

ROOT = Path(__file__).parents[1]
FILTERS, MULTIPLIERS, BLOCKS, DIM, CODES = 32, (1, 2), 1, 6, 40
SIZE = 16


def random_tree() -> dict:
    """A checkpoint with the names of the published ones, small and random."""
    rng = np.random.default_rng(0)

    def conv(side, inputs, outputs, bias=True):
        kernel = rng.normal(size=(side, side, inputs, outputs)) / np.sqrt(side * side * inputs)
        made = {"kernel": kernel.astype(np.float32)}
        return {**made, "bias": rng.normal(0, 0.1, outputs).astype(np.float32)} if bias else made

    def norm(width):
        return {
            name: rng.normal(at, 0.1, width).astype(np.float32) for name, at in (("scale", 1), ("bias", 0))
        }

    def block(inputs, outputs):
        made = {"GroupNorm_0": norm(inputs), "Conv_0": conv(3, inputs, outputs, False)}
        made |= {"GroupNorm_1": norm(outputs), "Conv_1": conv(3, outputs, outputs, False)}
        return made if inputs == outputs else {**made, "Conv_2": conv(1, outputs, outputs, False)}

    encoder = {
        "Conv_0": conv(3, 3, 32, False),
        "ResBlock_0": block(32, 32),
        "ResBlock_1": block(32, 64),
        "ResBlock_2": block(64, 64),
        "GroupNorm_0": norm(64),
        "Conv_1": conv(1, 64, DIM),
    }
    decoder = {
        "Conv_0": conv(3, DIM, 64),
        "ResBlock_0": block(64, 64),
        "ResBlock_1": block(64, 64),
        "Conv_1": conv(3, 64, 64),
        "ResBlock_2": block(64, 32),
        "GroupNorm_0": norm(32),
        "Conv_2": conv(3, 32, 3),
    }
    book = rng.normal(0, 1.0, (CODES, DIM)).astype(np.float32)
    return {"params": {"encoder": encoder, "decoder": decoder, "quantizer": {"codebook": book}}}


def write(path: Path, tree: dict) -> Path:
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


def convolved(x, layer):
    y = lax.conv_general_dilated(
        x,
        layer["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return np.asarray(y) + layer.get("bias", 0)


def activated(x, layer):
    """Group norm of 32 groups and swish, in float64."""
    grouped = x.astype(np.float64).reshape(*x.shape[:3], 32, -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = grouped.var(axis=(1, 2, 4), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * layer["scale"] + layer["bias"]
    return (y / (1 + np.exp(-y))).astype(np.float32)


def residual(x, layers):
    h = convolved(activated(x, layers["GroupNorm_0"]), layers["Conv_0"])
    h = convolved(activated(h, layers["GroupNorm_1"]), layers["Conv_1"])
    return h + (convolved(h, layers["Conv_2"]) if "Conv_2" in layers else x)


def restated(params: dict, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes [B, N], pixels) of pictures uint8, by the layers of the tree above written out."""
    encoder, decoder, book = params["encoder"], params["decoder"], params["quantizer"]["codebook"]
    x = residual(convolved(images.astype(np.float32) / 255, encoder["Conv_0"]), encoder["ResBlock_0"])
    x = x.reshape(len(x), SIZE // 2, 2, SIZE // 2, 2, -1).mean(axis=(2, 4))
    x = functools.reduce(residual, (encoder["ResBlock_1"], encoder["ResBlock_2"]), x)
    latents = convolved(activated(x, encoder["GroupNorm_0"]), encoder["Conv_1"])
    codes = ((latents[..., None, :] - book) ** 2).sum(-1).argmin(-1)
    x = residual(convolved(book[codes], decoder["Conv_0"]), decoder["ResBlock_0"])
    x = residual(x, decoder["ResBlock_1"])
    x = convolved(x.repeat(2, axis=1).repeat(2, axis=2), decoder["Conv_1"])
    x = residual(x, decoder["ResBlock_2"])
    pixels = convolved(activated(x, decoder["GroupNorm_0"]), decoder["Conv_2"])
    return codes.reshape(len(codes), -1), pixels


def test_an_imported_tokenizer_computes_what_its_layers_say(tmp_path):
    tree = random_tree()
    codec, report = import_maskgit(write(tmp_path / "file", tree), tmp_path / "codec", SIZE)
    images = np.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    codes, pixels = restated(tree["params"], images)
    assert np.array_equal(codec.encode(images)[..., 0], codes)
    wanted = 255 * np.clip(pixels, 0, 1)
    assert len(np.unique(codes)) > 8 and wanted.std() > 20
    assert np.abs(codec.decode(codes[..., None]) - wanted).max() < 0.51  # half a level, by rounding
    assert (report.used, report.ignored) == (52, {})
    assert load_codec(tmp_path / "codec").hash == codec.hash


def test_arrays_outside_the_tokenizer_are_counted_and_listed(tmp_path):
    tree = random_tree()
    tree["batch_stats"] = {"mean": np.zeros(3, np.float32), "more": {"var": np.ones(2, np.float32)}}
    tree["params"]["discriminator"] = {"Conv_0": {"kernel": np.zeros((3, 3), np.float32)}}
    _, report = import_maskgit(write(tmp_path / "file", tree), tmp_path / "codec", SIZE)
    assert report.ignored == {"batch_stats/mean": 1, "batch_stats/more": 1, "params/discriminator": 1}
    assert "3 that are no tokenizer's ignored" in str(report) and "1 × params/discriminator" in str(report)


def refused(folder: Path, tree: dict) -> str:
    """The sentence with which a tree is refused; nothing must be written."""
    with pytest.raises(UserError) as caught:
        import_maskgit(write(folder / "file", tree), folder / "codec", SIZE)
    assert [path.name for path in folder.iterdir()] == ["file"]
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "encoder/Conv_0/kernel",
        "encoder/ResBlock_1/Conv_2/kernel",
        "encoder/GroupNorm_0/scale",
        "decoder/Conv_1/bias",
        "decoder/ResBlock_2/GroupNorm_1/bias",
        "quantizer/codebook",
    ],
)
def test_a_missing_array_is_named(name, tmp_path):
    tree = random_tree()
    *parents, leaf = name.split("/")
    del functools.reduce(dict.__getitem__, parents, tree["params"])[leaf]
    assert f"the array {name!r} is missing" in refused(tmp_path, tree)


def test_a_missing_block_is_noticed_by_the_numbers(tmp_path):
    tree = random_tree()
    del tree["params"]["encoder"]["ResBlock_2"]
    assert "2 encoder/ResBlock_… and 3 decoder/Conv_…" in refused(tmp_path, tree)


def test_arrays_that_are_wrong_or_unknown_are_named(tmp_path):
    tree = random_tree()
    tree["params"]["decoder"]["Conv_0"]["kernel"] = np.zeros((3, 3, DIM, 60), np.float32)
    sentence = refused(tmp_path, tree)
    assert "'decoder/Conv_0/kernel' has the shape (3, 3, 6, 60)" in sentence and "(3, 3, 6, 64)" in sentence
    tree = random_tree()
    tree["params"]["encoder"]["Conv_1"]["bias"][2] = np.nan
    assert "'encoder/Conv_1/bias' has values that are no finite numbers" in refused(tmp_path, tree)
    tree = random_tree()
    tree["params"]["encoder"]["Dense_0"] = {"kernel": np.zeros((2, 2), np.float32)}
    assert "'encoder/Dense_0/kernel' is no array of MaskGIT's tokenizer" in refused(tmp_path, tree)


def test_what_is_no_checkpoint_is_one_sentence(tmp_path):
    data = write(tmp_path / "file", random_tree()).read_bytes()
    for name, content in {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"<html>",
        "short": data[:-1],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.* get it"):
            import_maskgit(tmp_path / name, tmp_path / "codec")
    with pytest.raises(UserError, match="cannot be read"):
        import_maskgit(tmp_path / "none", tmp_path / "codec")
    with pytest.raises(UserError, match="has no 'params'"):
        import_maskgit(write(tmp_path / "other", {"step": 3}), tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


def test_the_command_writes_a_codec_and_says_what_it_read(tmp_path):
    src = write(tmp_path / "file", random_tree())
    command = [sys.executable, "-m", "anygpt_jax.convert", "import-maskgit", f"--out={tmp_path}/codec"]
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=ROOT)
    done = run([*command, f"--src={src}", f"--image_size={SIZE}"])
    assert done.returncode == 0, done.stderr
    assert "64 codes of 40 per picture of 16 × 16" in done.stdout and "52 arrays used" in done.stdout
    assert load_codec(tmp_path / "codec").fixed_frames == 64
    done = run(command)
    assert done.returncode == 2 and "needs --src" in done.stderr and "Traceback" not in done.stderr
