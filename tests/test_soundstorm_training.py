"""SoundStorm's training: the mask, finite losses, and that it learns a rule that generate then follows."""

import json

import jax
import numpy as np
import pytest
from anygpt_tokenizers import cli
from anygpt_tokenizers.soundstorm import SoundStorm
from anygpt_tokenizers.soundstorm_training import SoundStormTraining, draw_mask
from anygpt_tokenizers.train import train_codec


def dummy():
    return cli.load_config("configs/soundstorm.py:dummy").unlock()


def by_rule(semantic: np.ndarray, voice: int) -> np.ndarray:
    """Acoustic codes that follow from the semantic ones, and from a voice that only the prompt tells."""
    levels = [(3 * semantic + 1 + 4 * voice) % 8, (semantic + 2) % 8, (5 * semantic + 4 * voice) % 8]
    return np.stack([semantic, *levels], 1)


def write_codes(folder, count: int = 40) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        np.save(folder / f"{i}.npy", by_rule(rng.integers(0, 6, rng.integers(9, 25)), i % 2))
        rows.append(json.dumps({"codes": f"{i}.npy"}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))


def test_masks_keep_the_prompt_hide_a_cosine_share_and_never_nothing():
    lengths = np.array([1, 2, 10, 30] * 2000)
    mask = jax.jit(draw_mask, static_argnums=(2, 3))(jax.random.key(0), lengths, 30, 7)
    hidden, new = np.asarray(mask.hidden), np.asarray(mask.new)
    assert (hidden <= new).all() and (hidden.sum(1) >= 1).all()
    assert not new[np.arange(30) >= lengths[:, None]].any()
    long = lengths == 30
    starts = new[long].argmax(1)
    assert starts.min() == 0 and starts.max() == 29  # from no prompt to all but one
    assert (new[long].sum(1) == 30 - starts).all()  # everything after the prompt
    share = hidden[long].sum(1) / new[long].sum(1)
    wide = starts < 10
    # The mean of cos(π/2 · u), and half an entry of about 25 for rounding up.
    assert share[wide].mean() == pytest.approx(2 / np.pi + 0.02, abs=0.03)
    assert set(np.asarray(mask.level)) == set(range(7))


def test_the_loss_and_its_gradients_are_finite_where_the_original_hides_nothing():
    config = dummy()
    training = SoundStormTraining(config)
    params, state = training.init(jax.random.key(0), [])
    batch = {"codes": np.zeros((16, 16, 4), np.int32), "lengths": np.ones(16, np.int32)}
    step = jax.jit(jax.value_and_grad(training.loss, has_aux=True))
    for lengths in (np.ones(16, np.int32), np.zeros(16, np.int32)):  # single frames; nothing but padding
        (loss, _), grads = step(params, state, {**batch, "lengths": lengths}, jax.random.key(1))
        assert np.isfinite(loss) and (loss > 0) == lengths.any()
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_rule_is_learnt_and_generate_follows_it_in_the_prompts_voice(tmp_path):
    write_codes(tmp_path)
    metrics = train_codec(dummy(), tmp_path, tmp_path / "out")
    assert metrics["train"]["accuracy"] > 0.9
    assert train_codec(dummy(), tmp_path, tmp_path / "out") == metrics  # finished, so nothing is trained
    model = SoundStorm.from_pretrained(tmp_path / "out")
    rng = np.random.default_rng(1)
    semantic, spoken = rng.integers(0, 6, (2, 8)), rng.integers(0, 6, (2, 8))
    expected = np.stack([by_rule(row, voice) for voice, row in enumerate(semantic)])
    prompt = np.stack([by_rule(row, voice) for voice, row in enumerate(spoken)])
    made = model.generate(semantic, prompt)
    assert (made == expected).mean() > 0.95
    assert np.mean(metrics["heldout"]["accuracy"]) > 0.9


def test_codes_that_do_not_fit_are_named(tmp_path):
    training = SoundStormTraining(dummy())
    (tmp_path / "manifest.jsonl").write_text('{"codes": "a.npy"}')
    for codes, words in [
        (np.zeros((5, 3), int), r"\[frames, 4\], not \[5, 3\]"),
        (np.array([[0, 0, 0, 0], [0, 0, 9, 0]]), r"a\.npy: frame 1, level 2 is 9; codes lie in 0\.\.7"),
        (np.full((2, 4), 6), r"frame 0, level 0 is 6; codes lie in 0\.\.5"),
        (np.zeros((5, 4)), "float64"),
    ]:
        np.save(tmp_path / "a.npy", codes)
        with pytest.raises(cli.UserError, match=words):
            training.read_examples(tmp_path)


def test_files_of_codes_that_cannot_be_read_are_left_out_and_none_at_all_is_said(tmp_path, capsys):
    write_codes(tmp_path, count=3)
    (tmp_path / "0.npy").write_bytes(b"nothing")
    (tmp_path / "2.npy").unlink()
    assert len(SoundStormTraining(dummy()).read_examples(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "left out: 2 of 3 files" in said and "0.npy: not a readable .npy file" in said
    (tmp_path / "1.npy").unlink()
    with pytest.raises(cli.UserError, match=r"None of the 3 files .*0\.npy: not a readable \.npy file"):
        SoundStormTraining(dummy()).read_examples(tmp_path)
