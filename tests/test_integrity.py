"""A damaged checkpoint is named and the one before it is used."""

import os
import re
import signal
import subprocess
import sys

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


def test_multiples_of_keep_every_stay_for_good(tmp_path):
    config = dummy_config(checkpoint__every=4, checkpoint__keep=1, checkpoint__keep_every=8)
    loop.train(config, str(tmp_path), FakeData(), one_device())
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [8, 16, 20]


FULL_DISK = """
import sys
sys.path.insert(0, {tests!r})
from anygpt_tokenizers import cli
from fake_data import FakeData
from test_training import dummy_config, one_device
from anygpt_jax.training import ending, loop

config = dummy_config(steps=60, checkpoint__every=5, checkpoint__keep=100)
cli.run(lambda _: ending.exit_code(lambda: loop.train(config, {workdir!r}, FakeData(), one_device())))
"""


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_whole(tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    script = tmp_path / "run.py"
    script.write_text(FULL_DISK.format(tests=os.path.dirname(__file__), workdir=str(disk / "run")))
    mount = f"mount -t tmpfs -o size=3m tmpfs {disk}"
    own_namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*own_namespace, mount], capture_output=True).returncode:
        pytest.skip("this system lets no test mount a small disk of its own")
    command = f"{mount} && {sys.executable} {script}; code=$?; cp -r {disk} {kept}; exit $code"
    done = subprocess.run([*own_namespace, command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    # Threads of Orbax that are still writing may have a word after the sentence.
    (said,) = (
        part for part in done.stderr.split("error: ") if part.startswith("No space is left on the disk of ")
    )
    checkpoints = kept / "run" / "checkpoints"
    steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()]
    assert f"the checkpoint of step {max(steps)} stands" in said
    assert integrity.newest_whole(kept / "run", steps) == (max(steps), {})

    _train(kept / "run", max(steps) + 10)  # and there is room now
    assert curve(kept / "run")[-1]["step"] == max(steps) + 10
    assert not [path for path in checkpoints.iterdir() if path.is_dir() and not path.name.isdecimal()]


def test_what_a_killed_save_left_is_removed_by_the_next_run(tmp_path):
    _train(tmp_path, 10)
    left = tmp_path / "checkpoints" / "15.orbax-checkpoint-tmp" / "params"
    left.mkdir(parents=True)
    (left / "chunk").write_bytes(bytes(1000))
    _train(tmp_path, 12)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()) == ["10", "12"]


KILLED_AFTER_A_SAVE = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from fake_data import FakeData
from test_training import dummy_config, one_device
from anygpt_jax.training import loop

class Data(FakeData):
    def iterator(self, start_step, prefetch):
        for batch in super().iterator(start_step, prefetch):
            if start_step == 25:  # no save begins any more before the end
                end = time.monotonic() + 20
                while time.monotonic() < end and not Path({workdir!r}, "checksums", "20.json").exists():
                    time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
            start_step += 1
            yield batch

loop.train(dummy_config(steps=30, checkpoint__every=10), {workdir!r}, Data(), one_device())
"""


def test_a_bit_that_flips_after_a_kill_is_noticed_in_the_newest_checkpoint_too(tmp_path, capsys):
    script = KILLED_AFTER_A_SAVE.format(tests=os.path.dirname(__file__), workdir=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
    _flip_a_bit(_largest_file(tmp_path, 20))
    _train(tmp_path)
    said = capsys.readouterr().err
    assert "Checkpoint 20 is damaged" in said and "training goes on from step 10" in said


def _cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _forget_checksums(workdir):
    (workdir / "checksums" / f"{STEPS}.json").unlink()
    return workdir / "checkpoints" / str(STEPS)


UNSURE = {
    "its checksums in checksums/30.json cannot be read": lambda workdir: _cut_in_half(
        workdir / "checksums" / "30.json"
    ),
    "it has no checksums, and (params|opt_state) cannot be read": lambda workdir: _cut_in_half(
        _forget_checksums(workdir) and _largest_file(workdir, STEPS)
    ),
    "it has no checksums, and params cannot be read": lambda workdir: (
        _forget_checksums(workdir) / "params" / "manifest.ocdbt"
    ).unlink(),
    "it has no checksums, and data/metadata cannot be read": lambda workdir: _cut_in_half(
        _forget_checksums(workdir) / "data" / "metadata"
    ),
}


def test_what_a_checkpoint_without_readable_checksums_lacks_is_named_and_the_one_before_used(
    tmp_path, capsys
):
    _train(tmp_path)
    whole = curve(tmp_path)
    for words, damage in UNSURE.items():
        damage(tmp_path)
        assert load_model(tmp_path).step == 20
        _train(tmp_path)
        said = capsys.readouterr().err
        assert re.search(f"Checkpoint 30 is damaged .{words}.*training goes on from step 20", said), said
        assert curve(tmp_path) == whole


def test_a_checkpoint_without_checksums_counts_as_whole(tmp_path):
    _train(tmp_path, 10)
    (tmp_path / "checksums" / "10.json").unlink()
    assert load_model(tmp_path).step == 10
