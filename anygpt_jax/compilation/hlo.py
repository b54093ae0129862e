"""Reads what XLA writes about a compiled program: its loops, its arrays, XLA:TPU's own cycle estimates.

The text is `compiled.as_text()`. XLA:TPU notes `estimated_cycles` on every instruction that it costed; a
loop's body counts once per trip. Pallas kernels have no estimate, and collectives only that of their start.
"""

import collections
import dataclasses
import math
import re

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
_BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Targets of custom calls: Pallas on a TPU, cuDNN's attention on a GPU.
_KERNELS = ('"tpu_custom_call"', '"__cudnn$fmha')
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]+)"')


@dataclasses.dataclass
class Cost:
    """Of one run of the program on one device.

    Attributes:
      cycles: XLA's estimates, added up. by_operation: the same by the JAX operation that asked for it.
      kernels: launches of attention's kernels, by Pallas or cuDNN.
      collectives: kind → [launches, bytes], of what is sent by reduce-scatters, and else of results.
      arrays: array type such as "bf16[64,4096]" → its bytes, of results of the entry and of loop bodies.
    """

    cycles: int = 0
    kernels: int = 0
    by_operation: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    collectives: dict[str, list] = dataclasses.field(default_factory=dict)
    arrays: dict[str, int] = dataclasses.field(default_factory=dict)


def cost_of(text: str) -> Cost:
    """The cost of a program's text; ValueError if it has no entry."""
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    cost = Cost()
    _add(cost, computations, entry, 1)
    return cost


def _parse(text: str) -> tuple[dict[str, list[tuple[str, ...]]], str | None]:
    """Computation → its instructions (name, result type, opcode, rest of the line), and the entry's name."""
    computations: dict[str, list[tuple[str, ...]]] = {}
    entry, body = None, None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif body is not None and (instruction := _INSTRUCTION.match(line)):
            body.append(instruction.groups())
    return computations, entry


def _add(cost: Cost, computations: dict, name: str, times: int) -> None:
    types = {instruction: result for instruction, result, _, _ in computations.get(name, ())}
    for _, result, opcode, rest in computations.get(name, ()):
        if opcode == "while":
            condition = re.search(r"condition=%([\w.\-]+)", rest)[1]
            body = re.search(r"body=%([\w.\-]+)", rest)[1]
            _add(cost, computations, body, times * _trips(computations, condition))
            continue
        if opcode in ("call", "conditional", "async-start"):
            for callee in re.findall(r"(?:to_apply=|calls=|branch_computations=\{)%([\w.\-]+)", rest):
                _add(cost, computations, callee, times)
        if collective := _collective(computations, types, result, opcode, rest):
            entry = cost.collectives.setdefault(collective[0], [0, 0])
            entry[0] += times
            entry[1] += times * collective[1]
        if opcode == "custom-call" and any(target in rest for target in _KERNELS):
            cost.kernels += times
        if opcode not in ("parameter", "tuple", "get-tuple-element"):
            cost.arrays |= _arrays(result)
        if estimate := _CYCLES.search(rest):
            cycles = int(estimate[1]) * times
            label = _OP_NAME.search(rest)
            cost.cycles += cycles
            cost.by_operation[re.sub(r"\d+", "", label[1])[-80:] if label else opcode] += cycles


def _collective(
    computations: dict, types: dict[str, str], result: str, opcode: str, rest: str
) -> tuple[str, int] | None:
    """Kind and bytes of the collective that an instruction starts, or None. `types`: of its operands."""
    if opcode == "fusion":
        callee = re.search(r"calls=%([\w.\-]+)", rest)[1]
        inside = computations.get(callee, ())
        if any("AsyncCollectiveStart" in attributes for *_, attributes in inside):
            # Only started here: the fusions that follow compute beside it, and each names it once more.
            within = {name: inner for name, inner, _, _ in inside}
            found = (_collective(computations, within, *instruction[1:]) for instruction in inside)
            return next(filter(None, found), None)
        if not callee.startswith("all-reduce-scatter"):
            return None
        kind = "reduce-scatter"  # XLA:TPU's own, written as a sum and a slice
    else:
        kind = next((kind for kind in _COLLECTIVES if opcode.startswith(kind)), None)
    if kind is None or opcode.endswith("-done"):
        return None
    operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
    whole = [types.get(operand, "") for operand in operands] if kind == "reduce-scatter" else [result]
    return kind, sum(_bytes(part) for part in whole)


def _trips(computations: dict, condition: str) -> int:
    """A loop's trip count: the largest integer constant that its condition, or what that calls, holds."""
    seen, pending, trips = set(), [condition], 1
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for _, result, opcode, rest in computations.get(name, ()):
            value = re.match(r"(\d+)\)", rest)
            if opcode == "constant" and value and result.startswith(("s32", "u32", "s64", "u64")):
                trips = max(trips, int(value[1]))
            pending += re.findall(r"calls=%([\w.\-]+)", rest)
    return trips


def _arrays(result: str) -> dict[str, int]:
    """Array types in a result type, with their bytes (without the padding of the chip's tiles)."""
    return {f"{dtype}[{sizes}]": size for dtype, sizes, size in _each_array(result)}


def _bytes(result: str) -> int:
    return sum(size for _, _, size in _each_array(result))


def _each_array(result: str) -> list[tuple[str, str, int]]:
    found = []
    for dtype, sizes in _ARRAY.findall(result):
        if dtype in _BITS:
            count = math.prod(int(size) for size in sizes.split(",") if size)
            found.append((dtype, sizes, count * _BITS[dtype] // 8))
    return found
