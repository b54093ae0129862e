"""A user's mistake in a config, a directory or a resumed run is one sentence, and spoils nothing."""

import errno
import fcntl
import importlib.util
import json

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from fake_data import FakeData
from test_packing import pack
from test_training import curve, dummy_config, one_device

from anygpt_jax import storage
from anygpt_jax.training import loop
from anygpt_jax.training.metrics_log import read_metrics


def test_an_address_of_another_kind_is_no_working_directory():
    with pytest.raises(UserError, match=r"s3://bucket/run is an address, .*mount it"):
        loop.train(dummy_config(), "s3://bucket/run", FakeData(), one_device())


@pytest.mark.parametrize("name", ["file", "file/run", "/proc/run"])  # not even root may write to the last
def test_a_working_directory_that_cannot_be_one_is_one_sentence(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as a directory to write to"):
        loop.train(dummy_config(), tmp_path / name, FakeData(), one_device())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint__keep_every": 25}, "keep_every = 25 is no multiple of config.checkpoint.every = 10"),
        ({"checkpoint__keep": 0}, "config.checkpoint.keep = 0; it must be at least 1"),
        ({"checkpoint__every": 0}, "config.checkpoint.every = 0; it must be at least 1"),
        ({"log_every": 0}, "config.log_every = 0; it must be at least 1"),
        ({"steps": 0}, "config.steps = 0; it must be at least 1"),
        (
            {"optimizer__warmup": 1000.0},
            "warmup = 1000.0; it must be a fraction of config.steps",
        ),
        ({"optimizer__final": -1.0}, "final = -1.0; it must be a fraction of the highest learning rate"),
        ({"optimizer__learning_rate": -1.0}, "learning_rate = -1.0; it must be at least 0"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate = nan; it must be at least 0"),
        ({"optimizer__clip": float("inf")}, "clip = inf; it must be at least 0 and finite"),
        ({"optimizer__b2": 1.0}, "b2 = 1.0; it must be at least 0 and below 1"),
        ({"optimizer__eps": 0.0}, "eps = 0.0; it must be above 0"),
        ({"optimizer__skip_spikes": 0.5}, "skip_spikes = 0.5; it must be above 1, .* or 0 to skip nothing"),
        ({"loss_weights__image": -1.0}, "loss_weights.image = -1.0; it must be at least 0"),
        ({"optimizer__accumulation": 0}, "config.optimizer.accumulation = 0; it must be at least 1"),
        ({"model__loss_tile": 0}, "loss_tile is 0; it must be above 0"),
        ({"model__num_heads": -4}, "num_heads is -4; it must be above 0"),
        ({"model__dtype": "float99"}, "dtype 'float99' is none of float32, bfloat16, float16"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, "data = -1, fsdp = -1, .* one axis may be -1"),
        ({"mesh__tensor": 0}, "tensor = 0; sizes are at least 1"),
    ],
)
def test_a_number_that_makes_no_training_is_one_sentence_and_writes_nothing(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        loop.train(dummy_config(**changes), tmp_path / "run", FakeData(), one_device())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_clipping_at_0_is_no_clipping(tmp_path):
    losses = []
    for clip in (0.0, 1e9):
        config = dummy_config(steps=5, optimizer__clip=clip)
        losses.append(loop.train(config, tmp_path / str(clip), FakeData(), one_device())["loss"])
    assert losses[0] == losses[1]


def test_a_directory_that_another_run_keeps_writing_to_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    with storage.held(tmp_path), pytest.raises(UserError, match=r"Another run is writing to .*--workdir"):
        loop.train(dummy_config(steps=5), tmp_path, FakeData(), one_device())
    assert "waiting up to 0.5 s" in capsys.readouterr().err
    assert loop.train(dummy_config(steps=5), tmp_path, FakeData(), one_device())["loss"] > 0


def test_where_a_directory_cannot_be_locked_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.held(tmp_path):
        assert "has no locks: see that no second run" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"garbage", b"\xff\xfe", b"[3]", b'{"loss": 1.0}'])
def test_a_line_of_the_log_that_is_no_row_is_left_out(tmp_path, capsys, damage):
    row = {"step": 1, "loss": 2.0}
    (tmp_path / "metrics.jsonl").write_bytes(damage + b"\n" + json.dumps(row).encode() + b"\n")
    assert read_metrics(tmp_path) == [row]
    assert "Line 1 of" in capsys.readouterr().err


def test_a_run_goes_on_beside_other_data_and_lost_files(tmp_path, capsys):
    pack(tmp_path, [7, 9, 12] * 8)
    config = dummy_config(data__dir=str(tmp_path / "packed"), pack__seq_len=32, steps=1)
    loop.train(config, tmp_path / "run", devices=one_device())
    model = tmp_path / "run" / "text.model"
    was = model.read_bytes()
    model.unlink()
    pack(tmp_path, [7, 9, 12] * 9)
    capsys.readouterr()
    loop.train(config, tmp_path / "run", devices=one_device())
    said = "".join(capsys.readouterr())
    assert "have other rows than when the run in" in said and "read twice" in said
    assert "Nothing to train: step 1 of config.steps = 1 is there already." in said
    assert model.read_bytes() == was


def test_a_damaged_shard_ends_the_run_by_its_name_and_the_checkpoint_stands(tmp_path):
    pack(tmp_path, [7, 9, 12] * 40, window=60)
    config = dummy_config(data__dir=str(tmp_path / "packed"), pack__seq_len=32, checkpoint__every=1, steps=1)
    loop.train(config, tmp_path / "run", devices=one_device())
    shard = tmp_path / "packed" / "a" / "data-00001.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[1000:1400] = bytes(400)
    config.steps = 20
    for damaged in (bytes(data), data[:1000], b""):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"data-00001.arrayrecord is damaged \(.*; copy it again"):
            loop.train(config, tmp_path / "run", devices=one_device())
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
    meta = tmp_path / "packed" / "meta.json"
    for text in (meta.read_text()[:20], "[]"):
        meta.write_text(text)
        with pytest.raises(UserError, match=r"meta.json' is damaged|packed by another version"):
            loop.train(config, tmp_path / "run", devices=one_device())


def test_a_run_goes_on_with_its_own_optimizer_only(tmp_path):
    loop.train(dummy_config(steps=10), tmp_path, FakeData(), one_device())
    with pytest.raises(UserError, match=r"has the state of optimizer.name = 'adamw' .* 'muon'"):
        loop.train(dummy_config(optimizer__name="muon"), tmp_path, FakeData(), one_device())


@pytest.mark.parametrize(("before", "after"), [(0.0, 5.0), (5.0, 0.0)])
def test_skipping_spikes_is_turned_on_and_off_when_a_run_goes_on(tmp_path, before, after):
    # Where there is no spike it changes nothing, so the losses are those of a run that was never interrupted.
    constant = {"optimizer__schedule": "linear", "optimizer__final": 1.0, "optimizer__warmup": 0.0}
    loop.train(dummy_config(**constant), tmp_path / "whole", FakeData(), one_device())
    for steps, multiple in [(10, before), (20, after)]:
        config = dummy_config(**constant, steps=steps, optimizer__skip_spikes=multiple)
        loop.train(config, tmp_path / "run", FakeData(), one_device())
    whole, run = ([row["loss"] for row in curve(tmp_path / name)] for name in ("whole", "run"))
    np.testing.assert_allclose(run, whole, atol=1e-5)


@pytest.mark.parametrize("changes", [{"seed": 7}, {"data__batch_size": 4}])
def test_a_run_that_goes_on_with_other_rows_says_so(tmp_path, capsys, changes):
    loop.train(dummy_config(steps=10), tmp_path, FakeData(), one_device())
    data = FakeData(batch_size=changes.get("data__batch_size", 8))
    loop.train(dummy_config(**changes), tmp_path, data, one_device())
    said = capsys.readouterr().err
    ((name, value),) = changes.items()
    assert f"config.{name.replace('__', '.')} = {value}, but" in said and "read twice" in said


def test_a_bucket_needs_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    with pytest.raises(UserError, match=r"pip install 'anygpt_jax\[gcs\]'"):
        loop.train(dummy_config(), "gs://not-installed/run", FakeData(), one_device())


def test_packed_data_in_a_bucket_have_to_be_mounted():
    with pytest.raises(UserError, match=r"gs://bucket/packed is an address, .*mount the bucket"):
        loop.open_data("gs://bucket/packed", {}, 8, 0, 32)


@pytest.mark.parametrize(
    ("directory", "sentence"),
    [
        ("nowhere", r"no packed data at '.*nowhere'; .* --config.eval.dir=DIR"),
        (".", "no packed data at .* --config.eval.dir=DIR"),
        ("packed", "'.*packed' have 32 tokens and .*seq_len = 16; .* give other data as --config.eval.dir"),
        ("gs://bucket/packed", "mount the bucket .* --config.eval.dir"),
    ],
)
def test_what_cannot_be_evaluated_on_is_said_before_anything_is_made(tmp_path, directory, sentence):
    pack(tmp_path, [7, 9, 12] * 8)
    path = directory if "://" in directory else str(tmp_path / directory)
    config = dummy_config(eval__dir=path, eval__every=2, pack__seq_len=16)
    with pytest.raises(UserError, match=sentence):
        loop.train(config, tmp_path / "run", FakeData(seq_len=16), one_device())
    config.pack.seq_len = 32
    if directory == "packed":
        with pytest.raises(UserError, match=r"vocabularies differ: .* in config.eval.dir = .*packed"):
            loop.train(config, tmp_path / "run", FakeData(), one_device())
    assert not (tmp_path / "run").exists()


def test_rows_of_another_length_than_the_config_says_are_refused(tmp_path):
    pack(tmp_path, [7, 9, 12] * 8)
    config = dummy_config(data__dir=str(tmp_path / "packed"), pack__seq_len=64)
    sentence = r"packed' have 32 tokens and config.pack.seq_len = 64; .* --config.pack.seq_len=32"
    with pytest.raises(UserError, match=sentence):
        loop.train(config, str(tmp_path / "run"), devices=one_device())
    assert not (tmp_path / "run").exists()
    config.pack.seq_len, config.steps = 32, 1
    assert loop.train(config, str(tmp_path / "run"), devices=one_device())["loss"] > 0
