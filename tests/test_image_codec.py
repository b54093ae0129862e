"""The image tokenizer: its quantisers, its contract as a codec, and that a short training works."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers import train
from anygpt_tokenizers.cli import UserError, load_config
from anygpt_tokenizers.codec import load_codec, shipped_codec
from anygpt_tokenizers.image_quantizers import kmeans, nearest_code, principal_basis, spread_book
from anygpt_tokenizers.image_tokenizer import (
    FORM,
    TINT,
    edge_directions,
    from_patches,
    from_uint8,
    split_patches,
    to_patches,
)
from anygpt_tokenizers.image_training import ImageTraining, code_statistics
from PIL import Image, ImageDraw

from anygpt_jax.smallworld.generate import generate
from anygpt_jax.smallworld.judges import ceilings

CONFIG = str(Path(__file__).parents[1] / "configs" / "tokenizers" / "image_small.py") + ":dummy"
COLORS = [(220, 35, 40), (40, 165, 65), (40, 85, 215), (30, 30, 30)]


def draw(color, center, radius=9.0, kind="ellipse") -> np.ndarray:
    """One shape on white: uint8 [64, 64, 3]."""
    image = Image.new("RGB", (64, 64), "white")
    x, y = center
    getattr(ImageDraw.Draw(image), kind)((x - radius, y - radius, x + radius, y + radius), fill=color)
    return np.asarray(image)


def pictures(count: int) -> np.ndarray:
    """uint8 [count, 64, 64, 3]: discs and squares of any colour and place."""
    rng = np.random.default_rng(0)
    return np.stack(
        [
            draw(COLORS[i % 4], rng.uniform(16, 48, 2), rng.uniform(6, 12), ("ellipse", "rectangle")[i % 2])
            for i in range(count)
        ]
    )


def write_pictures(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    rows = [json.dumps({"text": "a shape", "image": f"{i}.png"}) for i in range(len(images))]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "manifest.jsonl").write_text(
        "\n".join([*rows, json.dumps({"text": "hi", "speech": "0.wav"})]) + "\n"
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The metrics and the directory of a codec trained for 30 steps on 96 pictures."""
    folder = tmp_path_factory.mktemp("image_codec")
    data = write_pictures(folder / "data", pictures(96))
    config = load_config(CONFIG)
    config.steps, config.codec.codebook_size = 30, 48
    return train.train_codec(config, str(data), str(folder / "out"), command="the command"), folder / "out"


def test_patches_are_put_back_where_they_came_from():
    image = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    assert np.array_equal(from_patches(to_patches(image, 16), 4, 16), image)
    assert np.array_equal(to_patches(image, 16)[0, 5].reshape(16, 16, 3), image[0, 16:32, 16:32])


def test_form_does_not_depend_on_colour_nor_tint_on_place():
    tints, forms = split_patches(from_uint8(np.stack([draw(c, (30, 33)) for c in COLORS])), 16)
    inked = np.asarray(forms[0]).any(-1)
    assert np.allclose(forms[0] / forms[0].max(), forms[2] / forms[2].max(), atol=1e-6)
    assert np.allclose(tints[:, inked], tints[:, inked][:, :1], atol=1e-6)
    assert not np.asarray(tints)[:, ~inked].any()


@pytest.mark.parametrize("down, right", [(0, 1), (3, 0), (-2, 2)])
def test_edge_directions_tell_shapes_apart_and_not_places(down, right):
    square = np.zeros((16, 16), np.float32)
    square[4:11, 4:11] = 1
    y, x = np.mgrid[:16, :16]
    disc = ((y - 7) ** 2 + (x - 7) ** 2 <= 4**2).astype(np.float32)
    shifted = np.roll(square, (down, right), axis=(0, 1))
    forms = np.stack([square, shifted, disc, np.zeros_like(square)]).reshape(4, -1)
    a, b, c, paper = np.asarray(edge_directions(forms))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.linalg.norm(a - c) > 2
    assert not paper.any()


def test_nearest_code_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    book, x = rng.normal(size=(17, 5)).astype(np.float32), rng.normal(size=(4, 9, 5)).astype(np.float32)
    brute = np.argmin(((x[..., None, :] - book) ** 2).sum(-1), axis=-1)
    assert np.array_equal(nearest_code(book, x), brute)


def test_kmeans_finds_separate_clusters_and_leaves_no_centre_empty():
    rng = np.random.default_rng(0)
    centers = 10 * np.eye(4, dtype=np.float32)
    x = np.repeat(centers, 50, axis=0) + rng.normal(0, 0.1, (200, 4)).astype(np.float32)
    book = kmeans(x, 8, 20, rng)
    assert set(np.argmax(book, axis=1)) == {0, 1, 2, 3}
    assert len(np.unique(nearest_code(book, x))) == 8


def test_spread_book_has_no_more_centres_than_the_data_need():
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(3, dtype=np.float32), 100, axis=0) + rng.uniform(-0.05, 0.05, (300, 3)).astype(
        np.float32
    )
    assert len(spread_book(x, 64, 0.3, 5)) == 3
    assert len(spread_book(x, 2, 0.3, 5)) == 2


def test_principal_basis_keeps_what_lies_in_a_plane():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 2)) @ rng.normal(size=(2, 9))).astype(np.float32)
    basis = principal_basis(x, 2)
    assert np.allclose(x @ basis @ basis.T, x, atol=1e-4)


def test_metrics_say_what_was_run(trained):
    metrics, out = trained
    assert metrics["command"] == "the command" and metrics["steps"] == 30
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["heldout"]["psnr_db"] > 18
    assert len((out / "train_log.jsonl").read_text().splitlines()) == 15


def test_a_second_run_gives_the_same_codec(trained, tmp_path):
    _, out = trained
    data = write_pictures(tmp_path / "data", pictures(96))
    config = load_config(CONFIG)
    config.steps, config.codec.codebook_size = 30, 48
    train.train_codec(config, str(data), str(tmp_path / "out"))
    assert load_codec(tmp_path / "out").hash == load_codec(out).hash


def test_codec_round_trip_keeps_shapes_types_and_contract(trained):
    codec = load_codec(trained[1])
    images = pictures(67)  # more than one batch, and a part of one
    codes = codec.encode(images)
    assert codes.shape == (67, 16, 2) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < codec.codebook_size
    again = codec.decode(codes)
    assert again.shape == images.shape and again.dtype == np.uint8
    assert np.abs(again.astype(int) - images).mean() < 12
    assert (codec.kind, codec.modality, codec.fixed_frames, codec.image_size) == ("image", "image", 16, 64)
    assert np.array_equal(codec.encode_many(list(images[:3]))[2], codes[2])
    assert np.array_equal(codec.encode(images[:1])[0], codes[0]), "codes depend on the batch"


def test_codes_of_a_patch_do_not_depend_on_its_place_or_neighbours(trained):
    codec = load_codec(trained[1])
    moved = codec.encode(np.stack([draw(COLORS[0], (24, 24), 7), draw(COLORS[0], (40, 56), 7)]))
    assert np.array_equal(moved[0].reshape(4, 4, 2)[1, 1], moved[1].reshape(4, 4, 2)[3, 2])
    assert not codec.encode(np.full((1, 64, 64, 3), 255, np.uint8)).any(), "paper is not code 0"
    recolored = codec.encode(np.stack([draw(c, (30, 33)) for c in COLORS[:3]]))
    inked = recolored[0, :, TINT] > 0
    assert len({tuple(row[inked]) for row in recolored[..., FORM].tolist() for row in [np.array(row)]}) <= 2
    assert len({tuple(np.unique(row[inked])) for row in recolored[..., TINT]}) == 3


def test_codes_are_l2_normalised_and_paper_is_the_pole(trained):
    codec = load_codec(trained[1])
    bound = codec.module.bind({"params": jax.tree.map(jnp.asarray, codec.params["forms"])})
    inked = pictures(4)
    tints, forms = split_patches(from_uint8(np.concatenate([inked, np.full_like(inked[:1], 255)])), 16)
    latents = bound.encoder(forms)
    for rows in (bound._book(), latents):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1.0, atol=1e-5)
    pole = np.eye(latents.shape[-1])[-1]
    np.testing.assert_allclose(np.stack([bound._book()[0], latents[-1, 0]]), [pole, pole], atol=1e-6)
    lengths = np.concatenate([np.linalg.norm(x, axis=-1).ravel() for x in (tints, codec.params["tints"])])
    assert np.isclose(lengths, 1.0, atol=1e-5).any() and np.isclose(lengths, 0.0).any()
    assert (np.isclose(lengths, 1.0, atol=1e-3) | (lengths == 0)).all(), "neither a direction nor paper"


def test_files_go_in_and_come_out(trained, tmp_path):
    codec = load_codec(trained[1])
    image = pictures(1)[0]
    codec.write(image, tmp_path / "a.png")
    assert np.array_equal(codec.read_file(tmp_path / "a.png"), image)
    assert np.array_equal(codec.encode_file(tmp_path / "a.png"), codec.encode(image[None])[0])
    none = codec.encode(np.zeros((0, 64, 64, 3), np.uint8))
    assert none.shape == (0, 16, 2) and codec.decode(none).shape == (0, 64, 64, 3)


def test_wrong_codes_and_images_are_refused(trained):
    codec = load_codec(trained[1])
    with pytest.raises(UserError, match="16 frames"):
        codec.decode(np.zeros((1, 15, 2), np.int32))
    with pytest.raises(UserError, match=r"0\.\.47"):
        codec.decode(np.full((1, 16, 2), 48))
    with pytest.raises(UserError, match=r"encodes uint8 \[batch, 64, 64, 3\], not float32 \[1, 64, 64, 3\]"):
        codec.encode(np.zeros((1, 64, 64, 3), np.float32))


def test_a_config_that_its_weights_do_not_fit_is_one_sentence(trained, tmp_path):
    load_codec(trained[1]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "codebook_size": 64}))
    with pytest.raises(UserError, match=r"forms/book has the shape \[48, .*asks for \[64, "):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    flat = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    for change, words in [
        ({"tints": flat["tints"][:9]}, r"tints has the shape \[9, 3\] .*asks for \[48, 3\]"),
        ({"forms/more": flat["tints"]}, r"forms/more has the shape \[48, 3\] .*asks for none"),
    ]:
        safetensors.numpy.save_file({**flat, **change}, tmp_path / "weights.safetensors")
        with pytest.raises(UserError, match=words):
            load_codec(tmp_path)


def test_code_statistics_of_known_codes():
    codes = np.zeros((4, 2, 2), np.int32)
    codes[:, 1, 1] = [0, 1, 2, 3]
    statistics = code_statistics(codes, 8)
    assert statistics["codes_used"] == [1, 4]
    assert statistics["entropy_bits_per_image"] == [0.0, 2.0]
    assert statistics["most_common_share"] == [1.0, 0.625]


def test_training_names_the_step_of_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    def loss(self, params, state, batch, rng):
        return jax.numpy.nan * sum(p.sum() for p in jax.tree.leaves(params)), (state, {})

    monkeypatch.setattr(ImageTraining, "loss", loss)
    data = write_pictures(tmp_path / "data", pictures(48))
    with pytest.raises(UserError, match="not finite at step 0"):
        train.train_codec(load_config(CONFIG), str(data), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no"),
        ("{}\n", "no row with 'image'"),
        ('{"image": null}\n', "no row with 'image'"),
        ('{"image": "a.png"}\n{"image": 5}\n', "line 2: 'image' is 5; it must be the path of a file"),
        ('{"image": ""}\n', "line 1: 'image' is ''"),
        ("{}\n\n3\n", "line 3 is no object"),
        ('["image"]\n', "line 1 is no object"),
        ("{\n", "line 1 is no JSON"),
        ("\udcff\n", "line 1 is no JSON: 'utf-8'"),
    ],
)
def test_data_without_pictures_is_one_clear_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.jsonl").write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(UserError, match=message):
        train.train_codec(load_config(CONFIG), str(tmp_path), str(tmp_path / "out"))


def test_too_few_pictures_for_the_codebook_are_refused(tmp_path):
    data = write_pictures(tmp_path / "data", np.full((4, 64, 64, 3), 255, np.uint8))
    with pytest.raises(UserError, match="too few"):
        train.train_codec(load_config(CONFIG), str(data), str(tmp_path / "out"))


def test_the_shipped_codec_keeps_what_pictures_show(tmp_path):
    generate(tmp_path / "world", "heldout", images=80, seed=7)
    codec = shipped_codec("image")

    def reconstruct(_, image):
        return codec.decode(codec.encode(image[None]))[0]

    assert ceilings(tmp_path / "world", reconstruct=reconstruct)["text->image"]["score"] >= 0.95
