"""What every compiled program's report says, as plain JSON values and for people."""

import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from anygpt_jax.compilation import hlo
from anygpt_jax.compilation.slices import Chip, chip_of

# XLA:GPU notes no cycles.
NO_ESTIMATE = "XLA:GPU estimates no time"


class DoesNotFit(Exception):
    """The compiler itself refused: no order of the program's steps fits the chip's memory.

    `report` is the program's, without what only a compiled program tells.
    """

    def __init__(self, report: dict[str, Any]):
        super().__init__(describe(report))
        self.report = report


def measure(
    what: str, topology: str, mesh: Mesh, summary: str, advice: str, compile_program: Callable[[], Any]
) -> tuple[dict[str, Any], hlo.Cost, str]:
    """Compiles, and says what the program is, where it runs and what the compiler knows of it.

    Args:
      summary: the program in a few words. advice: the knob to turn if it does not fit.
    Returns:
      A report (sizes in bytes per device), the cost that it was made of, and the program's text.
    Raises:
      DoesNotFit: the program is so large that the compiler gave up.
    """
    report = {
        "what": what,
        "topology": topology,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "summary": summary,
    }
    start = time.perf_counter()
    try:
        compiled = compile_program()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
        raise DoesNotFit(report | {"fits": False, "advice": advice, "refusal": reason}) from error
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    cost = hlo.cost_of(text)
    report |= {
        **_memory(compiled.memory_analysis(), chip_of(topology)),
        "largest_arrays": dict(sorted(cost.arrays.items(), key=lambda item: -item[1])[:10]),
        "kernel_launches": cost.kernels,
        "collectives": {kind: {"launches": n, "bytes": b} for kind, (n, b) in cost.collectives.items()},
        "compile_seconds": seconds,
    }
    if chip_of(topology).clock:
        report |= {"cycles": cost.cycles, "by_operation": dict(cost.by_operation.most_common(10))}
    if not report["fits"]:
        report["advice"] = advice
    return report, cost, text


def describe(report: dict[str, Any]) -> str:
    """The report of any program, in lines."""

    def gib(name: str) -> str:
        return f"{report[name] / 2**30:.2f}"

    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    head = f"{report['topology']}: {report['devices']} devices ({mesh}), {report['summary']}"
    if "refusal" in report:
        return f"{head}\n  {report['refusal']}\n  DOES NOT FIT; try {report['advice']}"
    verdict = "fits" if report["fits"] else f"DOES NOT FIT; try {report['advice']}"
    arrays = [f"    {size / 2**30:6.3f} GiB  {name}" for name, size in report["largest_arrays"].items()]
    moved = [
        f"    {kind}: {entry['launches']} launches, {entry['bytes'] / 2**30:.2f} GiB"
        for kind, entry in report["collectives"].items()
    ]
    cycles = f"{report['cycles'] / 1e9:.4f}e9 estimated cycles, " if "cycles" in report else ""
    return "\n".join(
        [
            head,
            f"  per device: arguments {gib('argument_bytes')} GiB, temporaries {gib('temp_bytes')}, outputs "
            f"{gib('output_bytes')} of which {gib('aliased_bytes')} reuse arguments",
            f"  {gib('total_bytes')} of {gib('limit_bytes')} GiB: {verdict}",
            f"  {cycles}{report['kernel_launches']} kernel launches",
            f"  {'predicted ' if cycles else ''}{report['prediction']}",
            *(["  collectives per device:", *moved] if moved else []),
            "  largest arrays (no sum: not all live at once):",
            *arrays,
            f"  compiled in {report['compile_seconds']:.0f} s",
        ]
    )


def _memory(memory: Any, chip: Chip) -> dict[str, Any]:
    """Bytes of a device, and whether they fit the chip."""
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    limit = round(chip.memory * chip.usable)
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "total_bytes": total,
        "limit_bytes": limit,
        "fits": total <= limit,
    }
