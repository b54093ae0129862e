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
COMMANDS = re.findall(
    r"^    python -m (\S+)(.*?)(?:  +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE
)


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
