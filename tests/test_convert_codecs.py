"""The codecs' importers as subcommands of anygpt_jax.convert."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import safetensors.numpy
from anygpt_tokenizers.seed import SeedCodec
from anygpt_tokenizers.soundstorm import SoundStorm
from seed_states import SMALL, random_files, write_files
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


def test_seeds_two_files_become_a_codec(tmp_path):
    spec = dataclasses.replace(SMALL, vision_dim=32, qformer_dim=24)  # which 16 and 12 heads divide
    quantizer, vit = write_files(tmp_path, random_files(spec))
    done = _convert("import-seed", f"--quantizer={quantizer}", f"--vit={vit}", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "32 codes of 2048 per picture" in done.stdout and "0 more" in done.stdout
    assert SeedCodec.from_pretrained(tmp_path / "out").spec.vision_dim == 32


def test_what_an_importer_lacks_is_one_sentence(tmp_path):
    for arguments, message in [
        (["import-speechtokenizer", "--ckpt=x.pt", f"--out={tmp_path}/out"], "needs --config"),
        (["import-encodec", f"--src={tmp_path}/none", f"--out={tmp_path}/out"], "can't be read"),
        (["import-soundstorm", f"--ckpt={tmp_path}/none", f"--out={tmp_path}/out"], "There is no checkpoint"),
        (["import-seed", f"--vit={tmp_path}/none", f"--out={tmp_path}/out"], "needs --quantizer"),
    ]:
        done = _convert(*arguments)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
