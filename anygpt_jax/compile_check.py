"""Does a config fit a TPU slice, and how fast would it be? Compiles for real, on any machine, without a TPU.

    python -m anygpt_jax.compile_check --config=configs/pretrain.py:v5e-64 --topology=v5e:8x8

Needs libtpu (pip install 'jax[tpu]'). Exit code 1 if a slice's memory is too small; the line says which knob
to turn. Predicted MFU = model FLOPs (causal attention and output table included, recomputation not) / (step
seconds × peak); step seconds = the compiler's cycles / clock + attention kernels, which it does not cost, at
half of the peak. Waiting for collectives is not in it.
"""

import json

import jax
from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax.compilation.train_check import check_train_step

_TOPOLOGY = flags.DEFINE_multi_string("topology", [], "CHIP:SHAPE, such as v5e:8x8; may be given repeatedly.")
_HLO = flags.DEFINE_string("hlo", None, "Writes the compiled program's text (of the last topology) here.")
_JSON = flags.DEFINE_string("json", None, "Writes all reports here.")


def main(positional: list[str]) -> int:
    """Prints a report per slice; 1 if one of them is too small."""
    if positional:
        raise cli.UserError(f"Unexpected argument {positional[0]!r}; give everything as --flag=value.")
    if not flags.FLAGS.config:
        raise cli.UserError("Give a config, such as --config=configs/pretrain.py:v5e-64.")
    if not _TOPOLOGY.value:
        raise cli.UserError("Give at least one slice, such as --topology=v5e:8x8.")
    jax.config.update("jax_platforms", "cpu")  # libtpu is to compile, not to look for a TPU
    reports = []
    for topology in _TOPOLOGY.value:
        report, text = check_train_step(flags.FLAGS.config, topology)
        reports.append(report)
        print(describe(report), flush=True)
        if _HLO.value:
            _write(_HLO.value, text)
    if _JSON.value:
        _write(_JSON.value, json.dumps(reports, indent=1) + "\n")
    return 0 if all(report["fits"] for report in reports) else 1


def describe(report: dict) -> str:
    """A report of `check_train_step` for people."""

    def gib(name: str) -> str:
        return f"{report[name] / 2**30:.2f}"

    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    verdict = "fits" if report["fits"] else f"DOES NOT FIT; try {report['advice']}"
    arrays = [f"    {size / 2**30:6.3f} GiB  {name}" for name, size in report["largest_arrays"].items()]
    moved = [
        f"    {kind}: {entry['launches']} launches, {entry['bytes'] / 2**30:.2f} GiB"
        for kind, entry in report["collectives"].items()
    ]
    return "\n".join(
        [
            f"{report['topology']}: {report['devices']} devices ({mesh}), {report['rows']} rows of "
            f"{report['tokens_per_row']} tokens, attention {report['attention']}, remat "
            f"{report['remat_policy']}",
            f"  per device: arguments {gib('argument_bytes')} GiB, temporaries {gib('temp_bytes')}, outputs "
            f"{gib('output_bytes')} of which {gib('aliased_bytes')} reuse arguments",
            f"  {gib('total_bytes')} of {gib('limit_bytes')} GiB: {verdict}",
            f"  {report['cycles'] / 1e9:.4f}e9 estimated cycles, "
            f"{report['kernel_launches']} kernel launches, {report['model_flops']:.3e} model FLOPs",
            f"  predicted step {report['step_seconds']:.3f} s, MFU {report['mfu']:.1%}, "
            f"{report['tokens_per_second_per_device']:,.0f} tokens/s per device",
            "  collectives per device:",
            *moved,
            "  largest arrays (no sum: not all live at once):",
            *arrays,
            f"  compiled in {report['compile_seconds']:.0f} s",
        ]
    )


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    cli.define_config_flag()
    cli.run(main)
