"""EnCodec's recipe at test size, levels that take no part in a step, and runs that were stopped or ended."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import cli, residual_vq, resume
from anygpt_tokenizers.audio_training import AudioTraining
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.encodec import Encodec
from anygpt_tokenizers.media_audio import write_audio
from anygpt_tokenizers.train import train_codec
from training_media import RATE, read_log, write_tones


def load(name: str):
    return cli.load_config(f"configs/tokenizers/{name}").unlock()


@pytest.mark.long
def test_encodecs_recipe_lowers_its_loss_and_uses_its_codes(tmp_path):
    data = write_tones(tmp_path, "music")
    config = load("encodec.py:dummy")
    config.steps = 120
    metrics = train_codec(config, data, tmp_path / "out", data)
    log = read_log(tmp_path / "out")
    early, late = ([row["mel_scales"] for row in rows] for rows in (log[:2], log[-4:]))
    assert np.mean(late) < 0.7 * np.mean(early)
    assert isinstance(load_codec(tmp_path / "out"), Encodec)
    assert min(metrics["heldout"]["codes_used"]) > 2


def test_levels_that_took_no_part_keep_their_codebooks_and_a_count_of_nothing_is_no_division():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)
    state = residual_vq.init_codebooks(levels=3, size=8, dimension=2, pool=64)
    state = residual_vq.kmeans_codebooks(state._replace(pool=jnp.stack([x] * 3)), jax.random.key(0), 64)
    state = state._replace(counts=state.counts.at[0, 0].set(0.0), sums=state.sums.at[0, 0].set(0.0))
    state = state._replace(embed=state.embed.at[0, 0].set(100.0))  # a code that nothing will choose
    codes, quantized, inputs = residual_vq.quantize(state.embed, x)
    left = residual_vq.remainders(x, quantized, inputs)
    for level in range(3):
        partial = residual_vq.dequantize(state.embed[: level + 1], codes[:, : level + 1])
        np.testing.assert_allclose(x - left[:, level], partial, atol=1e-5)
    used = jnp.array([True, True, False])
    new = residual_vq.update_codebooks(state, inputs, codes, jax.random.key(1), 0.9, 0.0, used)
    np.testing.assert_array_equal(new.embed[2], state.embed[2])
    assert np.abs(new.embed[:2] - state.embed[:2]).max() > 1e-4
    np.testing.assert_array_equal(new.embed[0, 0], state.embed[0, 0])


def test_a_run_that_was_killed_continues_to_the_bit(tmp_path, monkeypatch):
    data = write_tones(tmp_path, "speech")
    config = load("speech_small.py:dummy")
    config.update({"steps": 12, "save_every": 5, "log_every": 3})
    train_codec(config, data, tmp_path / "whole", data)

    class Killed(BaseException):
        pass

    sample = AudioTraining.sample_batch
    drawn = []

    def until_killed(self, examples, rng):
        drawn.append(rng)
        if len(drawn) == 9:
            raise Killed
        return sample(self, examples, rng)

    with monkeypatch.context() as patch:
        patch.setattr(AudioTraining, "sample_batch", until_killed)
        with pytest.raises(Killed):
            train_codec(config, data, tmp_path / "killed", data)
    assert load_codec(tmp_path / "killed").num_codebooks == 1  # the codec of the last save can be used
    other = config.copy_and_resolve_references()
    other.batch_size = 2
    with pytest.raises(cli.UserError, match=r"stopped whose config.batch_size was \d+, not 2; take that"):
        train_codec(other, data, tmp_path / "killed", data)
    train_codec(config, data, tmp_path / "killed", data)
    assert load_codec(tmp_path / "killed").hash == load_codec(tmp_path / "whole").hash
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert not (tmp_path / "killed" / resume.FILE).exists()


def test_a_finished_run_is_left_as_it_is_and_other_settings_are_refused(tmp_path, capsys):
    data, out = write_tones(tmp_path, "speech"), tmp_path / "out"
    config = load("speech_small.py:dummy")
    config.update({"steps": 3, "save_every": 2})
    metrics = train_codec(config, data, out, data)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def refused(words: str, **changes):
        other = config.copy_and_resolve_references()
        other.update(changes)
        with pytest.raises(cli.UserError, match=words):
            train_codec(other, data, out, data)

    assert train_codec(config, data, out, data) == metrics
    assert f"Nothing to train: {out} holds the finished run of 3 steps." in capsys.readouterr().err
    refused("out holds a finished run whose config.steps was 3, not 4; take another --out, or rem", steps=4)
    refused("out holds a finished run whose config.seed was 0, not 1; take another --out", seed=1)
    del metrics[resume.SETTINGS]  # as earlier versions recorded it
    for content in (json.dumps(metrics), "[]", '{"seco'):
        (out / resume.RECORD).write_text(content)
        refused("out holds a finished run; take another --out, or remove .*out to train anew")
    (out / resume.RECORD).unlink()
    (out / resume.LOG).rename(tmp_path / resume.LOG)
    refused(r"config\.json is there already and of no training run; .* take another --out, or remove")
    assert all((out / name).read_bytes() == before[name] for name in ("config.json", "weights.safetensors"))
    (tmp_path / resume.LOG).rename(out / resume.LOG)  # as if stopped while it was measured
    train_codec(config, data, out, data)
    assert (out / "weights.safetensors").read_bytes() == before["weights.safetensors"]
    assert (out / resume.RECORD).exists()


def silence(folder, *numbers: int) -> None:
    """Makes files of `write_tones` ones that can't be used."""
    for number in numbers:
        write_audio(np.zeros(RATE, np.float32), folder / f"{number}.wav", RATE)


@pytest.mark.parametrize("keep", [True, False])
def test_files_that_cannot_be_used_are_left_out_counted_and_said(tmp_path, capsys, keep):
    (tmp_path / "train").mkdir()
    (tmp_path / "heldout").mkdir()
    data, heldout = (write_tones(tmp_path / name, "speech") for name in ("train", "heldout"))
    silence(data, 0, 2)
    (heldout / "0.wav").write_bytes(b"RIFF")
    config = load("speech_small.py:dummy")
    config.update({"steps": 6, "keep_in_memory": keep, "evaluate_clips": 4})
    metrics = train_codec(config, data, tmp_path / "out", heldout)
    said = capsys.readouterr().err
    assert metrics["heldout"]["clips"] == (4 if keep else 3)  # of four
    if keep:
        assert metrics["examples"] == 4 and "left out: 2 of 6 files that can't be used; the first: " in said
        assert "left out: 1 of 6 files" in said
    else:
        assert metrics["heldout"]["left_out"] == 1 and "left out: 1 of 4 held-out files" in said
        assert "left out so far: 1 of 6 files" in said and "silent" in said


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_with_nothing_to_learn_from_or_to_measure_ends_before_its_first_step(tmp_path, keep):
    data = write_tones(tmp_path, "speech", count=2)
    config = load("speech_small.py:dummy")
    config.keep_in_memory = keep
    silence(data, 1)  # the last tenth, which is held out; kept in memory, one file alone is left
    with pytest.raises(cli.UserError, match="too few examples" if keep else "None of the 1 held-out files"):
        train_codec(config, data, tmp_path / "out")
    silence(data, 0)
    with pytest.raises(cli.UserError, match=r"None of the 2 files can be used; .*\.wav: silent"):
        training = AudioTraining(config)
        training.sample_batch(training.read_examples(data), np.random.default_rng(0))
    assert not (tmp_path / "out").exists()


def test_one_good_file_among_many_bad_ones_is_found(tmp_path):
    data = write_tones(tmp_path, "speech", count=1)
    row = (data / "manifest.jsonl").read_text()
    (data / "manifest.jsonl").write_text("\n".join([row.replace("0.wav", "gone.wav")] * 500 + [row]))
    config = load("speech_small.py:dummy")
    config.keep_in_memory = False
    training = AudioTraining(config)
    batch = training.sample_batch(training.read_examples(data), np.random.default_rng(0))
    assert (np.abs(batch["wave"]).max(axis=1) > 0.01).all()
