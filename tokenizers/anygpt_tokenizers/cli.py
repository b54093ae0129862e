"""What every entry point shares: configs as flags, and one clear sentence for a user's mistake."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable

from absl import flags
from ml_collections import config_dict, config_flags

from anygpt_tokenizers import platforms

# Name of a config flag → the file that is taken when it is not given.
_CONFIG_DEFAULTS: dict[str, str | None] = {}
_NO_DEVICE = "Unable to initialize backend"  # so JAX begins, and goes on with the reason and what to do


class UserError(Exception):
    """A mistake of the person at the keyboard: what is wrong, where, and what to do, in one sentence."""


def load_config(path: str) -> config_dict.ConfigDict:
    """Calls `get_config(arg)` of a config file given as `file.py` or `file.py:arg`."""
    file, _, argument = path.partition(":")
    if not os.path.isfile(file):
        raise UserError(f"There is no config file {file!r}; give one such as configs/tiny.py.")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} has no function get_config(arg), so it is not a config.")
    try:
        config = module.get_config(argument)
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} does not know the argument {argument!r}: {error}.") from error
    return config.lock() if isinstance(config, config_dict.ConfigDict) else config


def define_config_flag(name: str = "config", default: str | None = None, help: str = "config file") -> None:
    """Defines `--config=FILE[:ARG]` and `--config.field=value` (any field of the config)."""
    # absl would load a default right here, where nobody catches a mistake in it; `run` puts it in instead.
    config_flags.DEFINE_config_file(name, None, f"{help}: FILE.py or FILE.py:ARGUMENT", lock_config=True)
    _CONFIG_DEFAULTS[name] = default


def check_fields(config: config_dict.ConfigDict | None, needed: Iterable[str], program: str) -> None:
    """UserError if `config` lacks a field that `program` needs: it is then another program's."""
    if config is None:
        raise UserError("Give a config, such as --config=configs/tiny.py.")
    lacking = [name for name in needed if name not in config]
    if not lacking:
        return
    if "kind" in config:
        advice = "configs of codecs are for python -m anygpt_tokenizers.train"
    elif "model" in config:
        advice = "configs of language models are for anygpt_jax, such as python -m anygpt_jax.train"
    else:
        advice = "start from one in configs/"
    shown = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
    raise UserError(f"This is no config of {program}: it lacks {shown}; {advice}.")


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """Parses the flags, calls `main(positional arguments)` and exits; a UserError exits with 2.

    Before, JAX is kept from looking for a TPU that is not there (platforms.py).

    Also caught: an unknown flag, an unknown config field, a value of the wrong type; and devices that JAX
    cannot use, such as a TPU that another process holds, which exit with 1. `--help` prints the program's
    docstring and its flags.
    """
    argv = sys.argv if argv is None else argv
    if not {"--help", "-help", "-h"}.isdisjoint(argv[1:]):
        print(f"{(sys.modules['__main__'].__doc__ or '').strip()}\n{_flags_help()}")
        sys.exit(0)
    program = (
        f"python -m {sys.modules['__main__'].__spec__.name}" if sys.modules["__main__"].__spec__ else argv[0]
    )
    try:
        try:
            positional = flags.FLAGS(_with_default_configs(argv))[1:]
            _check_configs()
            _check_output()
        except flags.Error as error:
            lines = str(error).strip().splitlines()  # a config's own error comes with its traceback
            message = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
            raise UserError(f"{message} (see {program} --help)") from error
        except (AttributeError, KeyError) as error:
            raise UserError(f"Unknown config field: {_first_line(error)} (see the config file).") from error
        except (TypeError, ValueError, FileNotFoundError) as error:
            raise UserError(f"Unusable config: {_first_line(error)}") from error
        platforms.skip_absent_tpu()
        status = main(positional)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not str(error).startswith(_NO_DEVICE):
            raise
        # Not 2: the device may be free again when the command is given again.
        print(f"error: JAX cannot use the devices here. {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def _flags_help() -> str:
    """The flags of the program itself, without those of the libraries it imports."""
    lines = [flags.FLAGS.main_module_help()]
    for name, default in _CONFIG_DEFAULTS.items():
        lines.append(
            f"  --{name}: FILE.py or FILE.py:ARGUMENT" + (f" (default: {default})" if default else "")
        )
        lines.append(f"  --{name}.FIELD=VALUE: any field of that config, --{name}.A.B=VALUE a nested one")
    return "\n".join(lines)


def _with_default_configs(argv: list[str]) -> list[str]:
    """The arguments with `--config=DEFAULT` in front, where a config has a default and is not given."""
    given = {argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")}
    defaults = [f"--{name}={file}" for name, file in _CONFIG_DEFAULTS.items() if file and name not in given]
    return [argv[0], *defaults, *argv[1:]]


def _check_configs() -> None:
    """A config that cannot be read would otherwise show only when it is first used."""
    for name in _CONFIG_DEFAULTS:
        try:
            getattr(flags.FLAGS[name].value, "lock", None)
        except OSError as error:
            file = flags.FLAGS[name].config_filename
            raise UserError(f"There is no config file {file!r}; give one such as configs/tiny.py.") from error


def _check_output() -> None:
    """What is written with --out is written to a disk; an address would become an odd directory's name."""
    out = flags.FLAGS["out"].value if "out" in flags.FLAGS else None
    if out and "://" in out:
        raise UserError(
            f"--out={out} is an address, which cannot be used here; give a directory, then copy it."
        )


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    return text.strip().splitlines()[0]
