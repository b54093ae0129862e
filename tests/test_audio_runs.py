"""EnCodec's recipe at test size, levels that take no part in a step, and runs that were stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import cli, residual_vq, resume
from anygpt_tokenizers.audio_training import AudioTraining
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.encodec import Encodec
from anygpt_tokenizers.train import train_codec
from training_media import read_log, write_tones


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
    with pytest.raises(cli.UserError, match="other settings"):
        train_codec(other, data, tmp_path / "killed", data)
    train_codec(config, data, tmp_path / "killed", data)
    assert load_codec(tmp_path / "killed").hash == load_codec(tmp_path / "whole").hash
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert not (tmp_path / "killed" / resume.FILE).exists()
