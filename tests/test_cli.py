"""Every entry point: a mistake is one sentence and exit code 2, never a traceback; --help lists its flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODEC = "--config=configs/tokenizers/seed.py:stage1-dummy"
CASES = [
    ("anygpt_jax.train --config=configs/nowhere.py --workdir=x", "no config file"),
    ("anygpt_jax.train --config=configs/tiny.py:none --workdir=x", "choose nothing, 'long' or 'dummy'"),
    ("anygpt_jax.quickstart --config.no_such_field=3", "Unknown config field"),
    ("anygpt_jax.quickstart --config.steps=many", "many"),
    ("anygpt_jax.quickstart stray", "stray"),
    ("anygpt_jax.evaluate --heldout=x --out=y --workdir=nowhere", "holds no model"),
    ("anygpt_jax.evaluate --workdir=nowhere", "--heldout"),
    ("anygpt_jax.export", "--workdir"),
    ("anygpt_jax.pack --tokens=x --out=gs://bucket/packed", "give a directory, then copy it"),
    ("anygpt_jax.export --workdir=x --storage=int3", "storage"),
    ("anygpt_jax.pack --tokens=x --out=y", "Give a config"),
    (f"anygpt_jax.train {CODEC} --workdir=x", "no config of anygpt_jax.train: it lacks checkpoint, codecs"),
    (
        f"anygpt_jax.compile_check {CODEC} --topology=v5e:1x1",
        "no config of anygpt_jax.compile_check: it lacks",
    ),
    (
        f"anygpt_jax.pack {CODEC} --tokens=x --out=y",
        "lacks codecs, vocabulary, instructions, …; configs of codecs",
    ),
    (
        f"anygpt_jax.tokenize {CODEC} --manifest=x --out=y",
        "it lacks codecs, vocabulary, tokenize; configs of",
    ),
    (
        "anygpt_jax.compile_check --config=configs/pretrain.py --topology=v5e:1x1 --rows=3",
        "--rows is for --what=decode, speechtokenizer-encode",
    ),
    (
        "anygpt_jax.compile_check --config=configs/pretrain.py --topology=v5e:1x1 --length=3",
        "not for --what=train; give a train step's as --config.pack.seq_len",
    ),
    (
        "anygpt_jax.compile_check --what=seed-encode --topology=v5e:1x1 --length=3",
        "not for --what=seed-encode",
    ),
    (
        "anygpt_tokenizers.train --config=configs/tiny.py --data=x --out=y",
        "no config of anygpt_tokenizers.train: it lacks kind, batch_size, save_every; configs of language",
    ),
]


@pytest.mark.parametrize(("command", "message"), CASES)
def test_a_mistake_is_one_sentence_and_exit_code_2(command, message):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


def _train_on(platform, tmp_path, *arguments):
    """The end of a training on a platform that is not there: exit code and last line."""
    done = subprocess.run(
        [sys.executable, "-m", "anygpt_jax.train", f"--workdir={tmp_path}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": platform},
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_devices_that_cannot_be_used_are_said_and_hide_no_mistake(tmp_path):
    code, line = _train_on("nothing", tmp_path, "--config=configs/tiny.py")
    assert code == 1 and line.startswith("error: JAX cannot use the devices here. ") and "'nothing'" in line
    code, line = _train_on("nothing", tmp_path, "--config=configs/tiny.py", "--config.steps=0")
    assert code == 2 and "config.steps = 0" in line


@pytest.mark.parametrize(
    ("module", "flag"), [("anygpt_jax.pack", "--tokens"), ("anygpt_jax.smallworld", "--images")]
)
def test_help_prints_the_programs_own_text_and_flags(module, flag):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout and flag in done.stdout


def _platforms(tmp_path, **variables):
    """What JAX would look for, and what it finds, behind an entry point where libtpu is a package."""
    (tmp_path / "libtpu").mkdir(exist_ok=True)
    (tmp_path / "libtpu" / "__init__.py").write_text(
        "def get_library_path(): raise OSError('asked for a TPU')"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    known = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_"))}
    program = (
        "import jax\nfrom anygpt_tokenizers import cli, platforms\n"
        f"platforms._DEVICE_FILES = ({str(tmp_path)!r} + '/dev/*',)\n"
        "cli.run(lambda _: print(jax.config.jax_platforms), ['program'])"
    )
    command = [sys.executable, "-c", program]
    environment = {**known, "PYTHONPATH": path, **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_where_libtpu_is_only_there_to_compile_no_tpu_is_looked_for(tmp_path):
    assert _platforms(tmp_path) == "cpu"


def test_what_speaks_of_an_accelerator_or_of_a_wish_leaves_jax_as_it_is(tmp_path):
    assert _platforms(tmp_path, TPU_WORKER_ID="0") == "None"
    assert _platforms(tmp_path, JAX_PLATFORMS="cuda,cpu") == "cuda,cpu"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "accel0").touch()
    assert _platforms(tmp_path) == "None"
