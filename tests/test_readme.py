"""The README's commands name programs, flags, configs and fields that exist."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from anygpt_tokenizers import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    python -m (\S+)(.*?)(?:  +#.*)?$", README, re.MULTILINE)


@functools.cache
def _help(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _config_path(flag):
    return flag.split("=")[0].removeprefix("--config.").split(".")


@pytest.mark.parametrize(("module", "arguments"), COMMANDS, ids=[module for module, _ in COMMANDS])
def test_a_command_of_the_readme_can_be_typed(module, arguments):
    flags = [word for word in shlex.split(arguments) if word.startswith("--")]
    named = [flag.split("=", 1)[1] for flag in flags if flag.startswith("--config=")]
    if module == "anygpt_jax.convert":  # whose --config is a file of the original
        named = []
    config = cli.load_config(str(ROOT / (named or ["configs/tiny.py"])[0]))
    for flag in flags:
        if flag.startswith("--config."):
            functools.reduce(lambda fields, name: fields[name], _config_path(flag), config)
        else:
            assert f"{flag.split('=')[0]}:" in _help(module)


def test_the_pod_trains_on_rows_of_the_checked_length_from_grown_weights():
    pod = README.partition("## On a pod")[2].partition("\n## ")[0]
    packing, running, checking = (
        next(line for line in pod.splitlines() if name in line)
        for name in ("anygpt_jax.pack ", "tpu.sh run ", "anygpt_jax.compile_check ")
    )
    named = {re.search(r"--config=(\S+)", line)[1] for line in (packing, running, checking)}
    assert named == {"configs/pretrain.py:v5e-64"}
    mixture = cli.load_config(str(ROOT / "configs/pretrain.py") + ":v5e-64").data.mixture
    assert set(re.findall(r"[=,](\w+)=\w", packing.partition("--tokens")[2])) == set(mixture)
    for path in ("gs://BUCKET/stage0", "gs://BUCKET/packed"):
        assert f" {path}\n" in pod  # is filled
    assert "--config.init_from=gs://BUCKET/stage0" in running
    assert "--config.data.dir=bucket/packed" in running
    for line in README.splitlines():
        if "anygpt_jax.train" in line and "configs/pretrain.py" in line:
            assert "--config.init_from=" in line
