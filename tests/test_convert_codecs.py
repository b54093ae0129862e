"""The codecs' importers as subcommands of anygpt_jax.convert."""

import subprocess
import sys
from pathlib import Path

import safetensors.numpy
from anygpt_tokenizers.soundstorm import SoundStorm
from soundstorm_states import random_state

ROOT = Path(__file__).parents[1]


def _convert(*arguments):
    command = [sys.executable, "-m", "anygpt_jax.convert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_soundstorm_checkpoint_becomes_a_directory_that_loads(tmp_path):
    safetensors.numpy.save_file(random_state(), tmp_path / "state.safetensors")
    done = _convert("import-soundstorm", f"--ckpt={tmp_path}/state.safetensors", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "SoundStorm with 76,428 parameters" in done.stdout
    assert SoundStorm.from_pretrained(tmp_path / "out").params


def test_what_an_importer_lacks_is_one_sentence(tmp_path):
    for arguments, message in [
        (["import-speechtokenizer", "--ckpt=x.pt", f"--out={tmp_path}/out"], "needs --model_config"),
        (["import-encodec", f"--src={tmp_path}/none", f"--out={tmp_path}/out"], "can't be read"),
        (["import-soundstorm", f"--ckpt={tmp_path}/none", f"--out={tmp_path}/out"], "There is no checkpoint"),
    ]:
        done = _convert(*arguments)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
