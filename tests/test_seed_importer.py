"""Importing SEED-2's published files: every key accounted for, mistakes named, nothing half written."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import map_arrays, write_arrays
from anygpt_tokenizers.seed_importer import import_seed
from anygpt_tokenizers.seed_layout import sources_of, training_keys
from anygpt_tokenizers.seed_net import SeedSpec
from seed_states import HEADS, REVERSE, SMALL, random_codec, random_files, write_files


def imported(folder, change=lambda quantizer, vit: None, **options):
    """What `import_seed` makes of changed random files."""
    files = random_files()
    change(*files)
    paths = write_files(folder / "files", files)
    return import_seed(*paths, folder / "codec", **{"num_heads": HEADS, **options})


def refused(folder, change, **options) -> str:
    """The sentence with which changed files are refused; nothing must be written."""
    with pytest.raises(UserError) as caught:
        imported(folder, change, **options)
    assert [path.name for path in folder.iterdir()] == ["files"]
    return str(caught.value)


def test_the_published_size_needs_exactly_the_881_published_keys():
    spec = SeedSpec()
    keys = {key for source in sources_of(spec).values() for key in source.keys} | set(training_keys(spec))
    vision = [key for key in keys if key.startswith("visual_encoder.")]
    assert (len(keys), len(vision), len(keys) - len(vision)) == (881, 511, 370)
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    assert digest.startswith("d4a83b22529baeff"), "the names are not those of the released module"


def test_the_variant_with_a_reverse_q_former_has_256_more_keys_and_no_maps():
    published, reverse = SeedSpec(), SeedSpec(down_dims=(), reverse_layers=12)
    keys, others = (
        {key for source in sources_of(spec).values() for key in source.keys} | set(training_keys(spec))
        for spec in (published, reverse)
    )
    assert keys - others == {f"image_down.{index}.weight" for index in (0, 2, 4)}
    assert len(others - keys) == 256
    assert all(key == "reverse_tokens" or key.startswith("Reverse_Qformer.bert.") for key in others - keys)


def test_a_file_with_a_reverse_q_former_is_imported_as_such(tmp_path):
    codec = random_codec(tmp_path, random_files(REVERSE))
    assert codec.spec == REVERSE
    assert codec.embed(np.zeros((2, 32), np.int32)).shape == (2, REVERSE.embed_dim)


def test_sizes_are_read_off_the_tensors_and_weights_are_kept_exactly(tmp_path):
    codec, report = imported(tmp_path)
    assert codec.spec == SMALL
    quantizer, vit = random_files()
    assert (report.used + report.training_only, report.extra) == (len(quantizer) + len(vit), {})
    blocks = codec.params["vision"]["blocks"]
    assert np.array_equal(blocks["up"]["kernel"][2], vit["blocks.2.mlp.fc1.weight"].T)
    assert np.array_equal(blocks["value_bias"][1], vit["blocks.1.attn.v_bias"])
    head = codec.params["head"]["blocks"]
    joined = np.concatenate([head[f"{name}_bias"][1] for name in ("query", "key", "value")])
    assert np.array_equal(joined, quantizer["blocks_image.1.attn.qkv.bias"])
    layer = quantizer["Qformer.bert.encoder.layer.3.output_query.LayerNorm.weight"]
    assert np.array_equal(codec.params["qformer"]["pairs"]["plain"]["norm"]["scale"][1], layer)


def test_keys_beyond_the_published_ones_are_counted_and_listed(tmp_path):
    def more(quantizer, vit):
        for index in range(4):
            quantizer[f"Qformer.bert.encoder.layer.{index}.output.dense.bias"] = np.zeros(7, np.float32)
        quantizer["Qformer.cls.predictions.bias"] = np.zeros(3, np.float16)
        vit["head.weight"] = np.zeros((5, 2), np.float32)

    codec, report = imported(tmp_path / "more", more)
    assert report.extra == {
        "Qformer.bert.encoder.layer.*.output.dense.bias": (4, 28),
        "Qformer.cls.predictions.bias": (1, 3),
        "visual_encoder.head.weight": (1, 10),
    }
    assert "6 more of 41 elements ignored" in str(report)
    assert "4 × Qformer.bert.encoder.layer.*.output.dense.bias (28)" in str(report)
    assert codec.hash == imported(tmp_path / "exact")[0].hash


@pytest.mark.parity  # which is where torch is
def test_entries_of_a_torch_file_that_are_no_tensors_are_listed_and_sparse_ones_are_named(tmp_path):
    import torch

    quantizer, vit = random_files()
    paths = tmp_path / "seed_quantizer.pt", tmp_path / "eva_vit_g.pth"
    for path, state, more in zip(
        paths, (quantizer, vit), ({"epoch": 3, "optimizer": {"lr": 0.1}}, {"step": 7}), strict=True
    ):
        torch.save({key: torch.from_numpy(value) for key, value in state.items()} | more, path)
    codec, report = import_seed(*paths, tmp_path / "codec", num_heads=HEADS)
    assert report.extra == dict.fromkeys(("epoch", "optimizer", "visual_encoder.step"), (1, 0))
    assert "3 more of 0 elements ignored" in str(report)
    assert codec.hash == imported(tmp_path / "exact")[0].hash
    key = "quantize.embedding.weight"
    sparse = {key: torch.from_numpy(quantizer[key]).to_sparse()}
    torch.save({name: torch.from_numpy(value) for name, value in quantizer.items()} | sparse, paths[0])
    with pytest.raises(UserError, match=rf"seed_quantizer\.pt: '{key}' is no plain array .*; save it as one"):
        import_seed(*paths, tmp_path / "none", num_heads=HEADS)
    torch.save({"epoch": 3}, paths[0])
    with pytest.raises(UserError, match="not a state dict"):
        import_seed(*paths, tmp_path / "none", num_heads=HEADS)


def test_reverse_tokens_beside_the_published_head_are_extra(tmp_path):
    def more(quantizer, vit):
        quantizer["reverse_tokens"] = np.zeros((1, 1, SMALL.qformer_dim), np.float32)

    codec, report = imported(tmp_path, more)
    assert codec.spec == SMALL and report.extra == {"reverse_tokens": (1, SMALL.qformer_dim)}


@pytest.mark.parametrize(("file", "key"), [(0, "quantize.embedding.weight"), (1, "blocks.2.mlp.fc1.weight")])
def test_a_tensor_of_no_finite_numbers_is_named(file, key, tmp_path):
    def spoil(*files):
        files[file][key].flat[3] = (np.nan, np.inf)[file]

    sentence = refused(tmp_path, spoil)
    assert f"{key!r} has values that are no finite numbers" in sentence
    assert ("seed_quantizer", "eva_vit_g")[file] in sentence


def test_a_type_that_no_decoder_computes_in_is_refused(tmp_path):
    assert "float32 or bfloat16, not in dtype=float16" in refused(tmp_path, lambda *_: None, dtype="float16")


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "codec").mkdir()
    codec, _ = imported(tmp_path)
    assert codec.directory == tmp_path / "codec" and not list(tmp_path.glob(".codec-*"))


def test_blocks_of_the_published_tower_beyond_39_are_ignored(tmp_path):
    def deeper(quantizer, vit):
        for index in range(SMALL.vision_layers, 40):
            for key in [key for key in vit if key.startswith("blocks.0.")]:
                vit[key.replace("blocks.0.", f"blocks.{index}.")] = vit[key]

    codec, report = imported(tmp_path, deeper)
    assert codec.spec.vision_layers == 39
    assert sum(count for count, _ in report.extra.values()) == 13  # block 39


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (0, "query_tokens"),
        (0, "Qformer.bert.encoder.layer.2.crossattention.self.key.bias"),
        (0, "pos_embed"),
        (0, "blocks.1.mlp.fc2.weight"),
        (0, "image_down.4.weight"),
        (1, "pos_embed"),
        (1, "blocks.2.attn.q_bias"),
    ],
)
def test_a_missing_key_is_named_with_its_file(file, key, tmp_path):
    sentence = refused(tmp_path, lambda *files: files[file].pop(key))
    name = ("seed_quantizer", "eva_vit_g")[file]
    assert name in sentence and f"the key {key!r} is missing" in sentence


@pytest.mark.parametrize(
    ("file", "key", "shape"),
    [
        (0, "query_tokens", (32, 32)),
        (0, "query_tokens", ()),
        (0, "quantize.embedding.weight", (2048, 8, 1)),
        (0, "quantize.embedding.weight", (2048, 0)),
        (0, "image_down.2.weight", (16,)),
        (1, "pos_embed", (17, 48)),
        (1, "patch_embed.proj.weight", ()),
        (1, "blocks.0.mlp.fc1.weight", (0, 48)),
    ],
)
def test_a_tensor_of_no_or_the_wrong_axes_is_named_with_its_file(file, key, shape, tmp_path):
    sentence = refused(tmp_path, lambda *files: files[file].update({key: np.zeros(shape, np.float32)}))
    name = ("seed_quantizer", "eva_vit_g")[file]
    assert name in sentence and f"{key!r} has the shape {shape}; it must have" in sentence


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path):
    def wider(quantizer, vit):
        quantizer["encode_task_layer.2.weight"] = np.zeros((9, 32), np.float32)

    def longer(quantizer, vit):
        vit["blocks.1.attn.v_bias"] = np.zeros(49, np.float32)

    sentence = refused(tmp_path / "a", wider)
    assert "'encode_task_layer.2.weight' has the shape (9, 32)" in sentence and "(8, 32)" in sentence
    sentence = refused(tmp_path / "b", longer)
    assert "'blocks.1.attn.v_bias' has the shape (49,)" in sentence and "eva_vit_g" in sentence


def test_a_missing_vision_tower_gets_the_sentence_that_users_needed(tmp_path):
    quantizer, _ = write_files(tmp_path / "files", random_files())
    for vit in (None, tmp_path / "eva_vit_g.pth"):
        with pytest.raises(UserError) as caught:
            import_seed(quantizer, vit, tmp_path / "codec")
        for words in ("eva_vit_g.pth", "https://", "LAVIS", "--vit", "turns a picture into features"):
            assert words in str(caught.value)
    assert not (tmp_path / "codec").exists()


def test_unusable_files_and_directories_get_one_sentence(tmp_path):
    paths = write_files(tmp_path, random_files())
    with pytest.raises(UserError, match="cannot be read: No such file"):
        import_seed(tmp_path / "none.safetensors", paths[1], tmp_path / "codec")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no safetensors"):
        import_seed(paths[0], tmp_path / "empty", tmp_path / "codec")
    with pytest.raises(UserError, match="exists already"):
        import_seed(*paths, tmp_path, num_heads=HEADS)
    with pytest.raises(UserError, match="can't have 5 heads"):
        import_seed(*paths, tmp_path / "codec", num_heads=(5, 4, 2))
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="header is not readable"):
        import_seed(*paths, tmp_path / "codec", num_heads=HEADS)
    assert not (tmp_path / "codec").exists()


def test_files_written_array_by_array_are_safetensors(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.float32(7), "d": np.zeros((0, 2))}
    shapes = {name: np.shape(value) for name, value in arrays.items()}
    write_arrays(tmp_path / "x.safetensors", shapes, np.dtype("float16"), arrays.__getitem__)
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    ours = map_arrays(tmp_path / "x.safetensors")
    assert set(theirs) == set(ours) == set(arrays)
    for name, value in arrays.items():
        assert ours[name].dtype == np.float16
        assert np.array_equal(theirs[name], value) and np.array_equal(ours[name], value)
