"""Every entry point: a mistake is one sentence and exit code 2, never a traceback; --help lists its flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize(
    ("module", "flag"), [("anygpt_jax.pack", "--tokens"), ("anygpt_jax.smallworld", "--images")]
)
def test_help_prints_the_programs_own_text_and_flags(module, flag):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout and flag in done.stdout
