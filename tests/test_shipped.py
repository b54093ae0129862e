"""The shipped model's storage, and `sample` as a command."""

import dataclasses
import os
import subprocess
import sys

import fake_model
import jax
import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError

from anygpt_jax import shipped
from anygpt_jax.sampling.generator import Generator


@pytest.fixture
def exported(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "load_model", lambda workdir, step: fake_model.load())
    size = shipped.export("unused", tmp_path / "model")
    assert size == os.path.getsize(tmp_path / "model" / "weights.safetensors")
    return tmp_path / "model"


def test_an_exported_model_answers_like_the_original(exported):
    original = fake_model.load()
    loaded = shipped.load_shipped(exported)
    assert loaded.step == original.step and loaded.config == original.config
    original.vocabulary.check(loaded.vocabulary)
    halves = dataclasses.replace(original, params=loaded.params)
    loaded = dataclasses.replace(loaded, codecs=fake_model.CODECS)
    (answer,) = Generator(loaded).generate("text->image", ["a red circle"])
    (again,) = Generator(halves).generate("text->image", ["a red circle"])
    np.testing.assert_array_equal(answer, again)


def test_weights_are_stored_in_half_precision(exported):
    original, loaded = fake_model.load(), shipped.load_shipped(exported)
    wanted = np.asarray(original.params["embedding"], np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(loaded.params["embedding"]), wanted)


def test_int8_weights_take_half_the_space_and_stay_within_half_a_step(tmp_path, monkeypatch, exported):
    monkeypatch.setattr(shipped, "load_model", lambda workdir, step: fake_model.load())
    size = shipped.export("unused", tmp_path / "int8", storage="int8")
    assert size < 0.55 * os.path.getsize(exported / "weights.safetensors")
    loaded = shipped.load_shipped(tmp_path / "int8")
    for value, again in zip(
        jax.tree.leaves(fake_model.load().params), jax.tree.leaves(loaded.params), strict=True
    ):
        assert value.shape == again.shape
        if value.size % 64 == 0:
            blocks, restored = np.reshape(value, (-1, 64)), np.reshape(again, (-1, 64))
            steps = np.abs(blocks).max(axis=1) / 127
            assert (np.abs(blocks - restored).max(axis=1) <= 0.57 * steps).all()


def test_an_unknown_storage_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "load_model", lambda workdir, step: fake_model.load())
    with pytest.raises(UserError, match="'int4'"):
        shipped.export("unused", tmp_path, storage="int4")


def test_a_codec_of_another_hash_is_refused(monkeypatch):
    vocab = fake_model.load().vocabulary
    wrong = dataclasses.replace(vocab.modalities["image"], codec_hash="other")
    vocab = dataclasses.replace(vocab, modalities={**vocab.modalities, "image": wrong})
    monkeypatch.setattr(shipped, "shipped_codec", lambda name: fake_model.CODECS[name])
    assert shipped.ShippedCodecs(vocab)["speech"] is fake_model.CODECS["speech"]
    with pytest.raises(UserError, match="trained with other"):
        shipped.ShippedCodecs(vocab)["image"]


def test_a_missing_export_is_named(tmp_path):
    with pytest.raises(UserError, match="no exported model"):
        shipped.load_shipped(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [["--workdir=nowhere", "text|image|a"], ["--temperature=-1"], ["--step=x"], ["--no_such_flag"]],
)
def test_the_sample_command_exits_with_2_and_one_sentence(arguments):
    command = [sys.executable, "-m", "anygpt_jax.sample", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
