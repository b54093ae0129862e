"""Weights in and out: nothing is lost, and old rows stay."""

import json
import os
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import random_llama
import safetensors.numpy
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import SafetensorsFile
from fake_data import FakeData

from anygpt_jax import sharding, vocabulary
from anygpt_jax.checkpoint import load_model
from anygpt_jax.convert import export_hf, grow, hf_source, import_hf, tokens
from anygpt_jax.convert.store import ParameterStore
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.text import TextTokenizer
from anygpt_jax.training import defaults, loop


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory in two shards with speech codes, and what is in it."""
    directory = tmp_path_factory.mktemp("llama") / "hf"
    vocab = random_llama.media_vocabulary()
    values = random_llama.write_llama(directory, vocab, random_llama.decoder_config(vocab))
    return directory, vocab, values


@pytest.fixture(scope="module")
def imported(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "ckpt"
    import_hf(llama[0], out)
    return out


def weights_of(directory):
    """Name → array of every safetensors file in a directory."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        file = SafetensorsFile(path)
        found |= {name: file.read(name) for name in file.shapes}
    return found


def positions_of(directory):
    """What an export says of its longest row, in both places."""
    config, tokenizer = (
        json.loads((directory / name).read_text()) for name in ("config.json", "tokenizer_config.json")
    )
    return config["max_position_embeddings"], tokenizer["model_max_length"]


def test_import_then_export_keeps_every_bit_name_and_token(llama, imported, tmp_path):
    directory, vocab, values = llama
    export_hf(imported, tmp_path / "out", shard_bytes=200_000)
    back = weights_of(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert sorted(back) == sorted(values)
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value)
    assert json.loads((tmp_path / "out/added_tokens.json").read_text()) == vocab.token_strings
    assert positions_of(tmp_path / "out") == (4096, 4096)
    import_hf(tmp_path / "out", tmp_path / "again")
    a, b = (load_model(path) for path in (imported, tmp_path / "again"))
    assert a.vocabulary == b.vocabulary and a.config == b.config
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_half_precision_weights_are_read_and_written_exactly(dtype, tmp_path):
    vocab = random_llama.media_vocabulary()
    config = random_llama.decoder_config(vocab)
    values = random_llama.write_llama(tmp_path / "hf", vocab, config, files=1, dtype=dtype)
    import_hf(tmp_path / "hf", tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out", dtype=np.dtype(dtype).name)
    back = weights_of(tmp_path / "out")
    for name, value in values.items():
        np.testing.assert_array_equal(back[name].view(np.uint16), value.view(np.uint16))


def test_the_checkpoints_own_tokens_say_what_the_rows_are(llama, imported):
    model = load_model(imported)
    assert model.vocabulary == llama[1]
    assert model.config.vocab_size == model.vocabulary.padded_size > model.vocabulary.size
    assert not np.asarray(model.params["embedding"][model.vocabulary.size :]).any()


@pytest.mark.parametrize("repeated", [False, True])
def test_a_tied_models_output_table_is_the_input_table_whether_or_not_it_is_stored(repeated, llama, tmp_path):
    directory, vocab, values = llama
    shutil.copytree(directory, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    for path in (tmp_path / "hf").glob("*.safetensors"):
        path.unlink()
    table = values["model.embed_tokens.weight"]
    tied = {name: value for name, value in values.items() if name != "lm_head.weight"}
    tied |= {"lm_head.weight": table} if repeated else {}
    safetensors.numpy.save_file(tied, tmp_path / "hf" / "model.safetensors")
    config = random_llama.hf_config(random_llama.decoder_config(vocab)) | {"tie_word_embeddings": True}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    import_hf(tmp_path / "hf", tmp_path / "ckpt")
    params = load_model(tmp_path / "ckpt").params
    np.testing.assert_array_equal(params["embedding"][: vocab.size], table)
    np.testing.assert_array_equal(params["unembedding"][:, : vocab.size], table.T)


@pytest.mark.parametrize(
    ("given", "theta"),
    [
        ({}, 1e4),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5),
        ({"rope_theta": 500_000, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_parameters": {"rope_theta": 5e5}}, 5e5),
    ],
)
def test_the_rotary_base_is_read_where_old_and_new_configs_have_it(llama, tmp_path, given, theta):
    config = json.loads((llama[0] / "config.json").read_text()) | given
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hf_source.model_fields(str(tmp_path))["rope_theta"] == theta


def test_published_token_files_give_the_published_layouts(tmp_path):
    for name, rows in [("chat", 53_520), ("base", 53_516)]:
        layout = vocabulary.published(name)
        (tmp_path / "added_tokens.json").write_text(json.dumps(layout.token_strings))
        text = random_llama.tokenizer()
        text.size = 32_000  # the ids alone are looked at
        found = tokens.vocabulary_of(str(tmp_path), text)
        assert found.size == rows
        assert found.token_strings == layout.token_strings


@pytest.fixture(scope="module", params=[2, 4], ids=["two_kv_heads", "four_kv_heads"])
def on_one_device(request, tmp_path_factory):
    """An imported model with 2 or 4 key/value heads, what it was made of, and its logits on one device."""
    directory = tmp_path_factory.mktemp("meshes")
    vocab = random_llama.media_vocabulary()
    config = random_llama.decoder_config(vocab, request.param)
    values = random_llama.write_llama(directory / "hf", vocab, config, scale=0.05)
    import_hf(directory / "hf", directory / "ckpt")
    model = load_model(directory / "ckpt")
    return directory / "ckpt", vocab, values, _logits(model, vocab.size - 1)


def _logits(model, last):
    """[2, 16, V] of random ids and the last real one."""
    decoder = Decoder(model.config)
    ids = np.random.default_rng(5).integers(0, last, (2, 16)).astype(np.int32)
    ids[:, 3] = last

    @jax.jit
    def logits(params, ids):
        hidden, _ = decoder.apply({"params": params}, ids)
        return decoder.apply({"params": params}, hidden, method="logits")

    return np.asarray(logits(model.params, ids))


@pytest.mark.parametrize("ways", [1, 2, 4, 8])
def test_the_last_real_row_and_the_logits_survive_on_every_tensor_mesh(on_one_device, ways):
    workdir, vocab, values, expected = on_one_device
    rules = sharding.DEFAULT_RULES
    mesh = sharding.make_mesh({"tensor": ways}, jax.devices()[:ways])
    model = load_model(workdir, mesh=mesh, rules=rules)
    rows = model.params["embedding"].sharding.shard_shape(model.params["embedding"].shape)[0]
    assert rows == vocab.padded_size // ways
    last = vocab.size - 1
    table, head = values["model.embed_tokens.weight"], values["lm_head.weight"]
    np.testing.assert_array_equal(model.params["embedding"][last], table[last])
    np.testing.assert_array_equal(model.params["unembedding"][:, last], head[last])
    key = model.params["layers"]["attention"]["key"]["kernel"]  # [layers, D, K, H]
    heads = model.config.num_kv_heads
    assert key.sharding.shard_shape(key.shape)[2] == (heads if heads % ways else heads // ways)
    with sharding.sharding_context(mesh, rules):
        out = _logits(model, last)
    assert np.isfinite(out[..., last]).all() and (out[..., last + 1 :] < -1e29).all()
    np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected[..., : vocab.size]) > 1


# ------------------------------------------------------------------------------------------------ grow


def test_growing_copies_old_rows_and_draws_new_ones(llama, imported, tmp_path):
    _, vocab, values = llama
    music = vocabulary.make_modality("music", 4, 64, frame_rate=50.0, sample_rate=32000, max_frames=9)
    larger = vocab.extend([music, "<eom>"])
    larger.save(tmp_path / "vocabulary.json")
    for src, out in [(imported, "from_ours"), (llama[0], "from_theirs")]:
        config = grow(src, str(tmp_path), tmp_path / out, seed=3)
        assert (config.num_real_rows, config.vocab_size) == (larger.size, larger.padded_size)
    a, b = (load_model(tmp_path / out) for out in ("from_ours", "from_theirs"))
    assert a.vocabulary == larger
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    tables = np.asarray(a.params["embedding"]), np.asarray(a.params["unembedding"]).T
    for table, name in zip(tables, ["model.embed_tokens.weight", "lm_head.weight"], strict=True):
        np.testing.assert_array_equal(table[: vocab.size], values[name])
        new = table[vocab.size : larger.size]
        assert new.std() == pytest.approx(0.02, rel=0.02) and abs(new.mean()) < 1e-3
        assert not table[larger.size :].any()
    assert (tables[0][vocab.size :] != tables[1][vocab.size :]).any()
    old = load_model(imported).params["layers"]
    jax.tree.map(np.testing.assert_array_equal, a.params["layers"], old)


def test_a_vocabulary_that_renames_a_row_cannot_be_grown_into(imported, tmp_path):
    other = random_llama.media_vocabulary(control_first=3)
    other.extend(["<eom>"]).save(tmp_path / "vocabulary.json")
    with pytest.raises(UserError, match=r"'<eos>' in .* rows are only appended"):
        grow(imported, str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ training


class TextData(FakeData):
    """FakeData over the imported vocabulary, whose speech codes now have a codec."""

    def __init__(self, vocab):
        super().__init__(batch_size=4)
        self.vocabulary, self.directions = vocab, vocab.directions()
        self.text_tokenizer = TextTokenizer("shipped:smallworld")

    def batch(self, step):
        batch = super().batch(step)
        return batch | {"directions": np.zeros_like(batch["directions"])}


def run_config(init_from):
    config = defaults.get_config()
    config.model.update(preset="dummy", embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, hidden_dim=96)
    config.steps, config.log_every, config.data.batch_size, config.mesh.data = 2, 1, 4, 1
    config.optimizer.learning_rate = 1e-9
    config.peak_flops = 1e12
    config.init_from = str(init_from)
    return config


def test_training_starts_from_imported_parameters_and_resumes_its_own(imported, tmp_path):
    model = load_model(imported)
    data = TextData(model.vocabulary)
    config = run_config(imported)
    config.pack.seq_len = 4608
    loop.train(config, str(tmp_path / "run"), data, jax.devices()[:1])
    trained = load_model(tmp_path / "run")
    assert trained.step == 2
    export_hf(tmp_path / "run", tmp_path / "exported")
    assert positions_of(tmp_path / "exported") == (4608, 4608)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(close, trained.params, model.params)
    loop.train(run_config(tmp_path / "gone"), str(tmp_path / "run"), data, jax.devices()[:1])


def said_of_training(config, workdir, data):
    with pytest.raises(UserError) as error:
        loop.train(config, str(workdir), data, jax.devices()[:1])
    return str(error.value)


def test_parameters_of_another_model_are_refused_with_what_helps_where_they_are(imported, tmp_path):
    data = TextData(load_model(imported).vocabulary)
    loop.train(run_config(imported), str(tmp_path / "run"), data, jax.devices()[:1])
    for name, old, new in [
        ("hidden_dim", 96, 128),
        ("norm_eps", 1e-5, 1e-6),
        ("param_dtype", "float32", "float16"),
    ]:
        config = run_config(imported)
        config.model[name] = new
        start = said_of_training(config, tmp_path / "new", data)
        assert f"config.init_from = {imported} have model.{name} = {old} and the config says {new}" in start
        assert f"set --config.model.{name}={old}, or start from another checkpoint" in start
        goes_on = said_of_training(config, tmp_path / "run", data)
        assert f"{tmp_path / 'run'} was made with model.{name} = {old} and the config says {new}" in goes_on
        assert f"go on with --config.model.{name}={old}, or give another --workdir" in goes_on
    larger = TextData(data.vocabulary.extend(["<eom>"]))
    assert said_of_training(run_config(imported), tmp_path / "larger", larger).startswith(
        "The vocabularies differ"
    )


def test_parameters_of_another_type_are_refused_with_the_command_that_makes_them(llama, tmp_path):
    import_hf(llama[0], tmp_path / "ckpt", param_dtype="bfloat16")
    data = TextData(load_model(tmp_path / "ckpt").vocabulary)
    config = run_config(tmp_path / "ckpt")
    said = said_of_training(config, tmp_path / "refused", data)
    assert "set --config.model.param_dtype=bfloat16, or make one of float32 with python -m anygpt_jax" in said
    command = said[said.index("anygpt_jax.convert") : -1].replace("=DIR", f"={tmp_path / 'float32'}").split()
    subprocess.run([sys.executable, "-m", *command], check=True)
    config.init_from = str(tmp_path / "float32")
    loop.train(config, str(tmp_path / "run"), data, jax.devices()[:1])
    rows = [load_model(tmp_path / name).params["embedding"] for name in ("ckpt", "run")]
    np.testing.assert_allclose(np.asarray(rows[0], np.float32), rows[1], atol=1e-6)


def test_an_imported_directory_is_no_run_to_continue(imported, tmp_path):
    shutil.copytree(imported, tmp_path / "ckpt")
    data = TextData(load_model(imported).vocabulary)
    with pytest.raises(UserError, match="holds parameters only"):
        loop.train(run_config(""), str(tmp_path / "ckpt"), data, jax.devices()[:1])


def test_an_imported_model_with_flipped_bytes_is_named_and_never_used(imported, tmp_path):
    model = load_model(imported)
    shutil.copytree(imported, tmp_path / "ckpt")
    largest = max((tmp_path / "ckpt/checkpoints/0/params/d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(byte ^ 0x55 for byte in data[middle : middle + 40])
    largest.write_bytes(data)
    uses = [
        lambda: load_model(tmp_path / "ckpt"),
        lambda: export_hf(tmp_path / "ckpt", tmp_path / "out"),
        lambda: grow(tmp_path / "ckpt", str(imported), tmp_path / "out"),
        lambda: loop.initial_parameters(tmp_path / "ckpt", model.config, model.vocabulary, None),
    ]
    for use in uses:
        with pytest.raises(UserError, match="no checkpoint that is whole"):
            use()
    with pytest.raises(UserError, match=f"damaged .*{largest.name} has other bytes than were written"):
        load_model(tmp_path / "ckpt", 0)
    with pytest.raises(UserError, match="holds parameters only"):
        loop.train(run_config(""), str(tmp_path / "ckpt"), TextData(model.vocabulary), jax.devices()[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"] and largest.exists()


def test_what_exists_is_never_overwritten(llama, imported):
    with pytest.raises(UserError, match="exists already"):
        import_hf(llama[0], imported)
    assert load_model(imported).step == 0


def test_the_command_imports_and_exports(llama, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "anygpt_jax.convert", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
        )

    done = run("import-hf", f"--src={llama[0]}", f"--out={tmp_path / 'ckpt'}", "--param_dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert "2 layers" in done.stdout
    assert ParameterStore(tmp_path / "ckpt", 0)["embedding"].dtype.name == "bfloat16"
    done = run("export-hf", f"--ckpt={tmp_path / 'ckpt'}", f"--out={tmp_path / 'out'}", "--max_positions=512")
    assert done.returncode == 0, done.stderr
    assert positions_of(tmp_path / "out") == (512, 512)
    wrong = run("export-hf", "--src=x")
    assert wrong.returncode == 2 and wrong.stderr.strip().splitlines()[-1].startswith(
        "error: export-hf needs"
    )
    wrong = run("import")
    assert wrong.returncode == 2 and "choose import-hf" in wrong.stderr
