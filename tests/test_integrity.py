"""A damaged checkpoint is named and the one before it is used."""

import pytest
from anygpt_tokenizers.cli import UserError
from fake_data import FakeData
from test_training import curve, dummy_config, one_device

from anygpt_jax import integrity
from anygpt_jax.checkpoint import load_model
from anygpt_jax.text import TextTokenizer
from anygpt_jax.training import loop

STEPS = 30


def _train(workdir, steps=STEPS):
    config = dummy_config(checkpoint__every=10, optimizer__schedule="linear", optimizer__warmup=0.0)
    config.optimizer.final = 1.0  # the rate does not depend on the number of steps
    config.steps = steps
    loop.train(config, str(workdir), FakeData(), one_device())
    TextTokenizer("shipped:smallworld").save(workdir / "text.model")  # what load_model wants beside it


def _largest_file(workdir, step):
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "bytes instead of": _truncate,
    "other bytes": _flip_a_bit,
    "is missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_training_names_a_damaged_checkpoint_and_goes_on_from_the_one_before(tmp_path, capsys, words):
    _train(tmp_path)
    whole = curve(tmp_path)
    DAMAGES[words](_largest_file(tmp_path, STEPS))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path, STEPS)
    assert load_model(tmp_path).step == 20
    _train(tmp_path)
    said = capsys.readouterr().err
    assert words in said and "training goes on from step 20" in said
    assert load_model(tmp_path).step == STEPS
    assert curve(tmp_path) == whole
    assert (tmp_path / "damaged" / str(STEPS)).is_dir()


def test_checksums_cover_the_checkpoints_that_are_kept_and_no_others(tmp_path):
    config = dummy_config(checkpoint__every=4, checkpoint__keep=2)
    loop.train(config, str(tmp_path), FakeData(), one_device())
    assert {path.stem for path in (tmp_path / "checksums").iterdir()} == {"16", "20"}
    assert integrity.newest_whole(tmp_path, [16, 20]) == (20, {})


def test_a_checkpoint_without_checksums_counts_as_whole(tmp_path):
    _train(tmp_path, 10)
    (tmp_path / "checksums" / "10.json").unlink()
    assert load_model(tmp_path).step == 10
