"""The SEED-2 tokenizer: what it takes and refuses, its contract as a codec, meshes, the published size."""

import dataclasses
import functools
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import seed
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import MediaError, load_codec
from anygpt_tokenizers.seed import ImageTokenizer, SeedCodec
from anygpt_tokenizers.seed_net import SeedNet, SeedSpec
from anygpt_tokenizers.unclip_importer import import_unclip
from PIL import Image, ImageOps
from recorded_unclip import write_directory
from seed_states import SMALL, random_codec, random_files, random_pictures, stages

FIXTURE = Path(__file__).parent / "fixtures" / "image_seed.npz"
SIZE = SMALL.image_size


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return random_codec(tmp_path_factory.mktemp("seed"))


def test_every_stage_is_the_recorded_original(tmp_path):
    with np.load(FIXTURE) as file:
        recorded = dict(file)
    files = [
        {key.partition(":")[2]: value for key, value in recorded.items() if key.startswith(f"{name}:")}
        for name in ("quantizer", "vit")
    ]
    codec = random_codec(tmp_path, files)
    pixels = recorded["pixels"]
    for name, actual in stages(codec, pixels).items():
        np.testing.assert_allclose(actual, recorded[name], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(codec.encode(pixels)[..., 0], recorded["codes"])
    np.testing.assert_allclose(codec.embed(recorded["codes"]), recorded["embedding"], rtol=0, atol=1e-5)


def test_the_published_size_has_the_published_number_of_parameters():
    pixels = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
    net = SeedNet(SeedSpec())
    (codes, embedding), variables = jax.eval_shape(net.init_with_output, jax.random.key(0), pixels)
    assert (codes.shape, codes.dtype, embedding.shape) == ((2, 32), jnp.int32, (2, 1024))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in variables["params"].items()}
    task_layers = 615_200 + 26_400
    blocks_and_head = 28_351_488 + 24_576 + 233_472 + 1_049_600
    assert sizes["vision"] == 985_894_528 and sizes["vision_norm"] == 2_816
    assert sizes["qformer"] == 24_576 + 105_138_176 - 512  # without the buffer of positions
    assert sizes["codebook"] == 262_144
    assert sizes["encode_in"] + sizes["encode_out"] + sizes["head"] == task_layers + blocks_and_head
    assert sum(sizes.values()) == 1_149_999_040 - 512 - 24_576 - 28_351_488  # `pos_embed` and `blocks`


def test_it_is_found_by_its_type_and_keeps_the_contract(codec, tmp_path):
    pixels = random_pictures(3)
    codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    assert isinstance(again, SeedCodec) and again.hash == codec.hash and len(codec.hash) == 16
    assert (again.kind, again.modality, again.num_codebooks, again.codebook_size) == (
        "image",
        "image",
        1,
        2048,
    )
    assert (again.image_size, again.fixed_frames) == (SIZE, 32)
    codes = again.encode(pixels)
    assert codes.shape == (3, 32, 1) and codes.dtype == np.int32
    assert np.array_equal(codes, codec.encode(pixels))
    many = again.encode_many(list(pixels))
    assert np.array_equal(many, codes) and again.encode_many([]) == []
    embedding = again.embed(codes)
    assert embedding.shape == (3, 256) and embedding.dtype == np.float32
    assert np.array_equal(embedding, again.embed(codes[..., 0]))


def test_codes_do_not_depend_on_the_batch(codec):
    pixels = random_pictures(70)  # more than one call of the program
    codes = codec.encode(pixels)
    assert np.array_equal(codec.encode(pixels[66:67]), codes[66:67])
    assert codec.encode(pixels[:0]).shape == (0, 32, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_are_decided_in_float32_at_the_highest_precision(codec, dtype):
    net, pixels = SeedNet(SMALL, jnp.dtype(dtype)), random_pictures(1)
    encode = functools.partial(net.apply, method="encode")
    with jax.default_matmul_precision("bfloat16"):
        jaxpr = jax.make_jaxpr(encode)({"params": codec.params}, pixels)
    size = SMALL.codebook_size
    decisions = [product for product in products(jaxpr.jaxpr) if size in product.outvars[0].aval.shape]
    assert len(decisions) == 1
    precision = decisions[0].params["precision"]
    assert precision == (jax.lax.Precision.HIGHEST,) * 2
    assert all(operand.aval.dtype == jnp.float32 for operand in decisions[0].invars)


def products(jaxpr):
    """Every dot_general of a jaxpr, those of the programs within included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_later_queries_change_no_earlier_code(codec):
    pixels, params = random_pictures(2), jax.tree.map(np.array, codec.params)
    queries = jax.jit(functools.partial(codec.net.apply, method="queries"))
    before = np.asarray(queries({"params": params}, pixels))
    params["qformer"]["queries"][20:] += np.random.default_rng(0).normal(size=(12, SMALL.qformer_dim))
    after = np.asarray(queries({"params": params}, pixels))
    assert np.array_equal(before[:, :20], after[:, :20]) and np.abs(before - after)[:, 20:].max() > 0.1


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_eight_devices_give_the_codes_of_one(codec, axes):
    pixels = random_pictures(11)
    spread = SeedCodec(codec.config, codec.params, codec.directory)
    spread.on_mesh(jax.make_mesh(tuple(axes.values()), tuple(axes)))
    assert np.array_equal(spread.encode(pixels), codec.encode(pixels))
    codes = codec.encode(pixels)
    np.testing.assert_allclose(spread.embed(codes), codec.embed(codes), rtol=0, atol=1e-5)
    kernel = spread.weights["vision"]["blocks"]["up"]["kernel"]
    with pytest.raises(UserError, match="neither 'data' nor 'fsdp'"):
        spread.on_mesh(jax.make_mesh((8,), ("tensor",)))
    whole = SMALL.vision_layers * SMALL.vision_dim * SMALL.vision_hidden
    assert kernel.addressable_shards[0].data.size == whole // axes.get("fsdp", 1)


def test_pictures_are_resized_by_pillows_bicubic_and_not_cropped(codec, tmp_path):
    pixels = random_pictures(1, 131)[0][:, :77]
    image = Image.fromarray(pixels)
    expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    image.save(tmp_path / "a.png")
    assert np.array_equal(codec.read_file(tmp_path / "a.png"), expected)
    for picture in (
        image,
        pixels,
        pixels / 255.0,
        (pixels / 255).astype(np.float32),
        str(tmp_path / "a.png"),
    ):
        assert np.array_equal(codec.read(picture), expected)
    gray = image.convert("L")
    expected = np.asarray(gray.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    for picture in (gray, np.asarray(gray), np.asarray(gray)[..., None]):
        assert np.array_equal(codec.read(picture), expected)


def test_orientation_is_applied_and_a_large_jpeg_is_not_read_as_a_draft(codec, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(random_pictures(1, 90)[0][:60])
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as saved:
        turned = ImageOps.exif_transpose(saved).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.array_equal(codec.read_file(tmp_path / "a.jpg"), np.asarray(turned))
    Image.fromarray(random_pictures(1, 64)[0]).resize((5000, 3300)).save(tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as saved:
        expected = np.asarray(saved.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert np.array_equal(codec.read_file(tmp_path / "b.jpg"), expected)


def test_an_unusable_picture_costs_no_other(codec, tmp_path):
    good, tokenizer = random_pictures(2), ImageTokenizer.from_pretrained(codec.directory)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("once upon a time")
    (tmp_path / "unknown.dds").write_bytes(b"DDS |\0\0\0\7\x10\0\0" + bytes(200))
    holey = good[0] / np.float32(255)
    holey[3, 4, 1] = np.nan
    images = [
        good[0],
        tmp_path / "empty.png",
        tmp_path / "none.png",
        holey,
        Image.fromarray(good[1]),
        tmp_path / "text.png",
        np.full((4, 4, 3), 255.0),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((2, 4, 4, 3), np.uint8),
        Image.new("1", (20_000, 20_000)),
        tmp_path / "unknown.dds",
    ]
    codes, refused = tokenizer.encode_usable(images)
    assert np.array_equal(codes, codec.encode(good)[..., 0])
    assert {index: error.reason for index, error in refused.items()} == {
        1: "empty file",
        2: "missing file",
        3: "pixels that are not finite numbers",
        5: "not an image",
        6: "float pixels outside 0..1",
        7: "pixels of an unknown type",
        8: "not a picture's shape",
        9: "too many pixels",
        10: "damaged image",
    }
    assert "[3, 4, 1]" in str(refused[3])
    with pytest.raises(MediaError, match=r"image 1 of 11: .*empty.png: empty file"):
        tokenizer.encode(images)
    assert np.array_equal(tokenizer.encode(good), codes)
    assert np.array_equal(tokenizer.encode(picture for picture in good), codes)
    with pytest.raises(MediaError, match=r"image 1 of 11: .*empty.png: empty file"):
        tokenizer.encode(iter(images))
    assert tokenizer.encode([]).shape == (0, 32)


def test_a_damaged_or_closed_pillow_image_costs_no_other(codec, tmp_path):
    good, tokenizer = random_pictures(2), ImageTokenizer(codec)
    Image.fromarray(random_pictures(1, 90)[0]).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    closed = Image.fromarray(good[0])
    closed.close()
    images = [
        good[0],
        Image.open(tmp_path / "truncated.jpg"),
        closed,
        Image.new("La", (8, 8)),
        Image.new("RGB", (0, 8)),
        [[1, 2], [3]],
        good[1],
    ]
    codes, refused = tokenizer.encode_usable(images)
    assert np.array_equal(codes, codec.encode(good)[..., 0])
    assert {index: error.reason for index, error in refused.items()} == {
        1: "damaged image",
        2: "damaged image",
        3: "damaged image",
        4: "no pixels",
        5: "not a picture's shape",
    }
    with pytest.raises(MediaError, match=r"image 1 of 7: damaged image \(.*truncated"):
        tokenizer.encode(images)


def test_a_single_picture_instead_of_a_list_is_refused_in_one_sentence(codec):
    tokenizer, picture = ImageTokenizer(codec), random_pictures(1)[0]
    for single in (picture, jnp.asarray(picture), Image.fromarray(picture), Path("a.png"), "a.png"):
        for method in (tokenizer.encode, tokenizer.encode_usable):
            with pytest.raises(UserError, match=r"Give a list of pictures, or an array \[batch, height"):
                method(single)
    gray = picture[..., 0]
    expected = tokenizer.encode([gray])
    assert expected.shape == (1, 32)
    for batch in ([Image.fromarray(gray)], np.stack([picture, picture])[:1, ..., :1], (gray,)):
        assert np.array_equal(tokenizer.encode(batch), expected)


def test_wrong_codes_and_pixels_are_named(codec):
    codes = np.zeros((3, 32), np.int32)
    codes[2, 5] = 2048
    for wrong, message in [
        (codes, r"0\.\.2047; position 5 of row 2 is 2048"),
        (-codes, "position 5 of row 2 is -2048"),
        (codes[:, :31], r"32 codes.*\[3, 31\]"),
        (np.zeros((1, 32, 2), np.int32), r"32 codes.*\[1, 32, 2\]"),
        (np.zeros((1, 32)), "whole numbers"),
        ([[0] * 32, [0] * 31, [0] * 32], "Row 1 of the codes has the length 31, not 32"),
        ([[0] * 31, [0] * 32], "Row 0 of the codes has the length 31, not 32"),
        ([[[0]] * 32, [[0]] * 31 + [[0, 0]]], "rows of codes are not all of one shape"),
    ]:
        for method in (codec.embed, codec.decode):
            with pytest.raises(UserError, match=message):
                method(wrong)
    with pytest.raises(UserError, match=r"uint8 \[batch, 56, 56, 3\]"):
        codec.encode(np.zeros((1, 224, 224, 3), np.uint8))


def test_decoding_needs_unclip_and_hands_embeddings_and_options_to_it(codec, tmp_path, monkeypatch):
    codec.save_pretrained(tmp_path / "codec")
    codes, others = np.zeros((2, 32), np.int32), np.ones((2, 32), np.int32)
    tokenizer = ImageTokenizer.from_pretrained(tmp_path / "codec")
    for ask in (tokenizer.codec.check_decodable, functools.partial(tokenizer.decode, codes)):
        with pytest.raises(UserError, match="must hold one for image embeddings of width 256, which the"):
            ask()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer.codec, "spec", SeedSpec())
        with pytest.raises(UserError, match=r"can't become pictures; run python .* import-unclip --src="):
            tokenizer.codec.check_decodable()

    class UnclipDecoder:
        @classmethod
        def from_pretrained(cls, directory):
            assert (directory / "config.json").is_file() and directory.name == "unclip"
            return cls()

        def decode(self, embeddings, key, **options):
            return embeddings, key, options

    monkeypatch.setattr(seed, "UnclipDecoder", UnclipDecoder)
    (tmp_path / "codec" / "unclip").mkdir()
    (tmp_path / "codec" / "unclip" / "config.json").write_text("{}")
    embeddings, key, options = tokenizer.decode(codes)
    assert np.array_equal(embeddings, codec.embed(codes)) and key == 0
    assert options == {"guidance_scale": 10.0, "num_inference_steps": 20}
    _, key, options = tokenizer.decode(codes, 5, guidance=3.0, steps=4, negative_codes=others, progress=print)
    assert np.array_equal(options.pop("negative_embeddings"), codec.embed(others)) and key == 5
    assert options == {"guidance_scale": 3.0, "num_inference_steps": 4, "progress": print}
    with pytest.raises(UserError, match="of 2 pictures too, not of 1"):
        tokenizer.decode(codes, negative_codes=others[:1])
    tokenizer.codec.save_pretrained(tmp_path / "copy")
    assert load_codec(tmp_path / "copy").unclip


def test_an_unusable_row_of_codes_costs_no_other_picture(codec):
    class UnclipDecoder:
        spec = types.SimpleNamespace(image_size=7)

        def decode(self, embeddings, key, **options):
            return embeddings, key, options

    tokenizer = ImageTokenizer(SeedCodec(codec.config, codec.params, codec.directory))
    tokenizer.codec.__dict__["unclip"] = UnclipDecoder()
    good = np.random.default_rng(0).integers(0, 2048, (3, 32))
    wrong = np.zeros(32, np.int64)
    wrong[5] = -1
    rows = [good[0], wrong, good[1], [0] * 31, list(good[2]), np.zeros(32), None]
    noise = np.arange(7 * 2).reshape(7, 2)
    (embeddings, key, options), refused = tokenizer.decode_usable(rows, 5, noise=noise, negative_codes=None)
    assert np.array_equal(embeddings, codec.embed(good)) and key == 5
    assert np.array_equal(options["noise"], noise[[0, 2, 4]])
    assert list(refused) == [1, 3, 5, 6] and all(isinstance(error, UserError) for error in refused.values())
    assert "position 5 of row 1 is -1" in str(refused[1]) and "whole numbers" in str(refused[5])
    _, _, options = tokenizer.decode_usable(rows, negative_codes=[*good, *good, good[0]])[0]
    assert np.array_equal(options["negative_embeddings"], codec.embed(good[[0, 2, 1]]))
    pictures, refused = tokenizer.decode_usable([wrong])
    assert pictures.shape == (0, 7, 7, 3) and pictures.dtype == np.uint8 and list(refused) == [0]


def test_a_picture_becomes_codes_and_codes_a_picture_again(tmp_path):
    spec = dataclasses.replace(SMALL, embed_dim=8)  # what the recorded decoder takes
    random_codec(tmp_path, random_files(spec))
    write_directory(tmp_path / "diffusers")
    import_unclip(tmp_path / "diffusers", tmp_path / "codec" / "unclip")
    tokenizer, seen = ImageTokenizer.from_pretrained(tmp_path / "codec"), []
    tokenizer.codec.check_decodable()
    other = SeedCodec({**tokenizer.codec.config, "embed_dim": 256}, {}, tmp_path / "codec")
    with pytest.raises(UserError, match="embeddings of width 8, but this codec's are of width 256"):
        other.check_decodable()
    codes = tokenizer.encode(random_pictures(2))
    pictures = tokenizer.decode(codes, key=1, steps=3, progress=lambda *done: seen.append(done))
    assert pictures.shape == (2, 8, 8, 3) and pictures.dtype == np.uint8 and seen[-1] == (4, 4)
    embeddings = tokenizer.embed(codes)
    alone = tokenizer.codec.unclip.decode(embeddings, 1, num_inference_steps=3)
    assert np.array_equal(pictures, alone)
    assert not np.array_equal(pictures, tokenizer.decode((codes + 1) % 2048, key=1, steps=3))


def test_pictures_are_drawn_in_a_dtype_of_their_own_and_on_all_of_the_mesh(tmp_path):
    random_codec(tmp_path, random_files(dataclasses.replace(SMALL, embed_dim=8)))
    write_directory(tmp_path / "diffusers")
    import_unclip(tmp_path / "diffusers", tmp_path / "codec" / "unclip", dtype="bfloat16")
    codec = SeedCodec.from_pretrained(tmp_path / "codec")
    assert codec.dtype == jnp.float32 and codec.unclip.dtype == "bfloat16"
    assert codec.on_mesh(jax.make_mesh((2, 4), ("data", "fsdp"))).unclip.batch_devices == 8
    assert codec.on_mesh(jax.make_mesh((8,), ("fsdp",))).unclip.batch_devices == 8


def test_damaged_and_foreign_directories_are_one_sentence(codec, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        SeedCodec.from_pretrained(tmp_path)
    codec.save_pretrained(tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_codec(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in [
        ({"vision_dim": None}, "field that can't be used"),
        ({"dtype": "fp16"}, "'fp16'"),
        ({"dtype": "int32"}, "dtype int32"),
        ({"codebook_size": 1024}, r"codebook has the shape \[2048, 8\].*asks for \[1024, 8\]"),
        ({"head_layers": 3}, "head/blocks/.* has the shape"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message) as caught:
            load_codec(tmp_path)
        assert str(tmp_path) in str(caught.value)
    for field in ("vision_hidden", "modality", "dtype"):
        without = {name: value for name, value in config.items() if name != field}
        (tmp_path / "config.json").write_text(json.dumps(without))
        with pytest.raises(UserError, match=rf"config\.json has no field '{field}'"):
            load_codec(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no configuration"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "vit_vq"}')
    with pytest.raises(UserError, match="no SEED-2"):
        SeedCodec.from_pretrained(tmp_path)


def test_saving_a_codec_where_it_was_read_leaves_it_as_it_is(codec, tmp_path):
    codec.save_pretrained(tmp_path / "codec")
    again = SeedCodec.from_pretrained(tmp_path / "codec")
    again.save_pretrained(tmp_path / "codec")
    assert SeedCodec.from_pretrained(tmp_path / "codec").hash == codec.hash


def test_small_random_files_are_those_of_the_spec():
    quantizer, vit = random_files(dataclasses.replace(SMALL, vision_layers=1))
    assert len(vit) == 4 + 13 and quantizer["query_tokens"].shape == (1, 32, SMALL.qformer_dim)
