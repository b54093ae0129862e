"""Does a program fit a TPU slice or GPUs, and how fast would it be? Compiles for real, on a machine without.

    python -m anygpt_jax.compile_check --config=configs/pretrain.py:v5e-64 --topology=v5e:8x8
    python -m anygpt_jax.compile_check --config=configs/pretrain.py --topology=v5e:2x4 --what=decode --rows=8
    python -m anygpt_jax.compile_check --what=speechtokenizer-encode --topology=v5e:1x1 --rows=64 --length=10
    python -m anygpt_jax.compile_check --config=configs/pretrain.py:8xh100 --topology=h100:8

Needs libtpu (pip install 'jax[tpu]'), for GPUs JAX's CUDA plugin (pip install 'jax[cuda12]'). Exit code 1 if
a device's memory is too small; the line says which knob to turn. Predicted MFU = model FLOPs (with causal
attention and output table, without recomputation) / (step seconds × peak); step seconds = the compiler's
cycles / clock + attention kernels, which it does not cost, at half of the peak. Waiting for collectives is
not in it. XLA:GPU estimates no cycles, so for GPUs nothing is predicted.
"""

import json
import os

import jax
from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax.compilation.programs import PROGRAMS, check_taken
from anygpt_jax.compilation.report import DoesNotFit, describe
from anygpt_jax.compilation.slices import devices_of
from anygpt_jax.training import checks

_TOPOLOGY = flags.DEFINE_multi_string(
    "topology", [], "CHIP:SHAPE, such as v5e:8x8 (v5e:8x8*2: two slices) or h100:8; may be repeated."
)
_WHAT = flags.DEFINE_enum(
    "what", "train", sorted(PROGRAMS), "The program: a train step, the sampler, a codec."
)
_ROWS = flags.DEFINE_integer("rows", None, "Not for train: rows of the batch.", lower_bound=1)
_LENGTH = flags.DEFINE_integer(
    "length",
    None,
    "Not for train and seed-encode: slots of the cache, seconds of sound, or steps of unCLIP.",
    lower_bound=2,
)
_HLO = flags.DEFINE_string("hlo", None, "Writes the compiled program's text (of the last topology) here.")
_JSON = flags.DEFINE_string("json", None, "Writes all reports here, after each topology.")


def main(positional: list[str]) -> int:
    """Prints a report per topology; 1 if one of them is too small."""
    if positional:
        raise cli.UserError(f"Unexpected argument {positional[0]!r}; give everything as --flag=value.")
    if _WHAT.value in ("train", "decode"):
        checks.check_fields(flags.FLAGS.config, "anygpt_jax.compile_check")
    if not _TOPOLOGY.value:
        raise cli.UserError("Give at least one topology, such as --topology=v5e:8x8.")
    for flag in (_ROWS, _LENGTH):
        if flag.value is not None:
            check_taken(flag.name, _WHAT.value)
    for flag in (_HLO, _JSON):
        if flag.value and not _can_be_written(flag.value):
            raise cli.UserError(f"--{flag.name}={flag.value} cannot be written; give a file's path.")
    jax.config.update("jax_platforms", "cpu")  # the plugins are to compile, not to look for devices
    for topology in _TOPOLOGY.value:
        devices_of(topology)  # one that does not exist is said before minutes of compiling
    reports = []
    for topology in _TOPOLOGY.value:
        try:
            report, text = PROGRAMS[_WHAT.value](flags.FLAGS.config, topology, _ROWS.value, _LENGTH.value)
        except DoesNotFit as refused:
            report, text = refused.report, ""
        reports.append(report)
        print(describe(report), flush=True)
        if _HLO.value and text:
            _write(_HLO.value, text)
        if _JSON.value:
            _write(_JSON.value, json.dumps(reports, indent=1) + "\n")
    return 0 if all(report["fits"] for report in reports) else 1


def _can_be_written(path: str) -> bool:
    """Known before minutes of compiling."""
    there = path if os.path.exists(path) else os.path.dirname(path) or "."
    return os.access(there, os.W_OK) and os.path.isdir(there) == (there != path)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    cli.define_config_flag()
    cli.run(main)
