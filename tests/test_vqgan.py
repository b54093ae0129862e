"""ViT-VQGAN and MaskGIT's VQGAN as codecs: published sizes, the contract, the pipeline's image modality."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError, load_config
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.vqgan import VqganCodec, VqganNet, completed, init_params
from PIL import Image

from anygpt_jax.data import records, tokenizing
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import from_config

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"
DUMMIES = (
    "vit_vqgan.py:dummy",
    "vit_vqgan.py:dummy-fsq",
    "maskgit_vqgan.py:dummy",
    "maskgit_vqgan.py:dummy-fsq",
)


def codec_config(name: str) -> dict:
    return completed({"num_codebooks": 1, **load_config(f"{CONFIGS}/{name}").codec.to_dict()})


def counts(name: str) -> dict[str, int]:
    """Parameters of each part, without computing any."""
    config = codec_config(name)
    pixels = jax.ShapeDtypeStruct((1, config["image_size"], config["image_size"], 3), jnp.float32)
    params = jax.eval_shape(VqganNet(config).init, jax.random.key(0), pixels)["params"]
    return {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}


@pytest.fixture(scope="module")
def codecs():
    """A codec with random weights of each dummy config."""
    made = {}
    for name in DUMMIES:
        config = codec_config(name)
        made[name] = VqganCodec(config, init_params(config, jax.random.key(0)))
    return made


def pictures(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_maskgits_published_size_to_the_parameter():
    parts = counts("maskgit_vqgan.py:256")
    assert parts == {"encoder": 23_775_104, "decoder": 30_478_339, "quantizer": 262_144}
    assert sum(parts.values()) == 54_515_587 == sum(counts("maskgit_vqgan.py:512").values())


def test_vit_vqgans_published_sizes():
    millions = {size: counts(f"vit_vqgan.py:{size}")["encoder"] / 1e6 for size in ("small", "base", "large")}
    assert [round(value) for value in millions.values()] == [28, 91, 644]
    assert counts("vit_vqgan.py:base")["quantizer"] == 8192 * 32
    assert "quantizer" not in counts("vit_vqgan.py:base-fsq")


@pytest.mark.parametrize(
    ("name", "frames", "codes"),
    [
        ("vit_vqgan.py:base", 1024, 8192),
        ("vit_vqgan.py:large-fsq", 1024, 8192),
        ("maskgit_vqgan.py:256", 256, 1024),
        ("maskgit_vqgan.py:512-fsq", 1024, 1000),
        ("vit_vqgan.py:tiny", 64, 512),
        ("maskgit_vqgan.py:tiny-fsq", 64, 512),
    ],
)
def test_a_picture_has_the_published_number_of_codes(name, frames, codes):
    config = codec_config(name)
    codec = VqganCodec(config, {"none": np.zeros(1)})
    assert (codec.fixed_frames, codec.codebook_size, codec.num_codebooks) == (frames, codes, 1)
    assert (codec.kind, codec.modality, codec.image_size) == ("image", "image", config["image_size"])


@pytest.mark.parametrize("name", DUMMIES)
def test_a_codec_gives_codes_and_pictures_and_is_itself_again_from_its_directory(codecs, name, tmp_path):
    codec, images = codecs[name], pictures(5)
    codes = codec.encode(images)
    assert codes.shape == (5, codec.fixed_frames, 1) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < codec.codebook_size and len(np.unique(codes)) > 1
    again = codec.decode(codes)
    assert again.shape == images.shape and again.dtype == np.uint8
    none = codec.encode(images[:0])
    assert (none.shape, none.dtype) == (codes[:0].shape, np.int32)
    assert (codec.decode(none).shape, codec.decode(none).dtype) == (images[:0].shape, np.uint8)
    assert np.array_equal(codec.encode_many(list(images[:1]))[0], codes[0]), "codes depend on the batch"
    codec.save_pretrained(tmp_path)
    loaded = load_codec(tmp_path)
    assert isinstance(loaded, VqganCodec) and (loaded.hash, loaded.config) == (codec.hash, codec.config)
    assert np.array_equal(loaded.decode(loaded.encode(images)), again)


def test_split_over_a_mesh_codes_and_pictures_are_the_same(codecs):
    codec, images = codecs["maskgit_vqgan.py:dummy"], pictures(6)
    codes = codec.encode(images)
    other = VqganCodec(codec.config, codec.params).on_mesh(jax.make_mesh((4,), ("data",)))
    assert np.array_equal(other.encode(images), codes)
    assert np.abs(other.decode(codes).astype(int) - codec.decode(codes)).max() <= 1
    with pytest.raises(UserError, match=r"has the axes \('model',\), not 'data'"):
        other.on_mesh(jax.make_mesh((4,), ("model",)))
    assert np.array_equal(other.encode(images), codes), "it left the mesh it was on"


def test_wrong_codes_pictures_and_sizes_are_refused(codecs):
    codec = codecs["vit_vqgan.py:dummy"]
    with pytest.raises(UserError, match="16 frames"):
        codec.decode(np.zeros((1, 15, 1), np.int32))
    with pytest.raises(UserError, match=r"0\.\.31"):
        codec.decode(np.full((1, 16, 1), 32))
    with pytest.raises(UserError, match=r"encodes uint8 \[batch, 16, 16, 3\], not float32 \[1, 16, 16, 3\]"):
        codec.encode(np.zeros((1, 16, 16, 3), np.float32))
    for change, message in [
        ({"image_size": 18}, "multiple of the 4 pixels"),
        ({"net": "resnet"}, '"vit" and "maskgit"'),
        ({"output": "colours"}, '"pixels" and "logits"'),
    ]:
        with pytest.raises(UserError, match=message):
            completed({**codec.config, **change})
    with pytest.raises(UserError, match="groups of the norms"):
        completed({**codecs["maskgit_vqgan.py:dummy"].config, "groups": 3})


def test_a_config_that_its_weights_do_not_fit_or_lacks_a_field_is_one_sentence(codecs, tmp_path):
    codecs["vit_vqgan.py:dummy"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    without = {name: value for name, value in config.items() if name != "patch_size"}
    for changed, message in [
        ({**config, "codebook_size": 64}, r"quantizer/.* has the shape \[32, .*asks for \[64, "),
        (without, "has no field 'patch_size'"),
        ({**config, "encoder": 5}, "field that can't be used"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            load_codec(tmp_path)


def test_the_pipeline_takes_it_as_a_worlds_image_modality(codecs, tmp_path):
    codec = codecs["vit_vqgan.py:dummy-fsq"]
    for index, image in enumerate(pictures(3, 24)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = [f"{index}.png" for index in range(3)] + ["broken.png"]
    rows = [f'{{"text": "a picture", "image": "{name}"}}' for name in names]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    media = {"image": codec}
    tokenizer = TextTokenizer("shipped:smallworld")
    vocabulary = from_config({"modalities": [{"name": "image"}]}, tokenizer, media)
    assert vocabulary.modality("image").fixed_frames == codec.fixed_frames
    meta = tokenizing.tokenize_manifest(tmp_path / "manifest.jsonl", tmp_path / "out", vocabulary, media)
    assert meta["items"] == {"image": 3} and sum(meta["skipped"].values()) == 1
    items = list(records.read_items(tmp_path / "out"))
    wanted = [codec.encode_file(tmp_path / name) for name in names[:3]]
    assert all(np.array_equal(item.codes, codes) for item, codes in zip(items, wanted, strict=True))
