"""TPU slices by topology name, and devices to compile for where there are none."""

import dataclasses
import os
from typing import Any

from anygpt_tokenizers.cli import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """memory: bytes of HBM; peak_flops: dense bfloat16 per second; clock: of the compiler's cycles, in Hz;
    bandwidth: of the HBM, bytes per second."""

    memory: int
    peak_flops: float
    clock: float
    bandwidth: float


# The vendor's data sheets. v5 is what libtpu calls v5p.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1.05e9, 1228e9),
    "v5e": Chip(16 * 2**30, 197e12, 1.5e9, 819e9),
    "v5": Chip(95 * 2**30, 459e12, 1.75e9, 2765e9),
    "v6e": Chip(32 * 2**30, 918e12, 1.75e9, 1640e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:8x8"; a UserError lists the known ones."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS or ":" not in topology:
        raise UserError(
            f"There is no topology {topology!r}; it is CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as "
            "v5e:8x8 or v4:4x4x4, and v5e:8x8*2 for two such slices."
        )
    return CHIPS[kind]


def devices_of(topology: str) -> list[Any]:
    """Devices of a slice, or of several ("v5e:8x8*2"), to compile for and not to run on.

    Needs libtpu, no TPU. UserError where libtpu is missing or does not know the topology.
    """
    chip_of(topology)
    # Else libtpu asks Google Cloud's metadata server what machine this is, and complains on stderr; and a
    # second process that only compiles would wait for a lock that is meant for the use of a TPU.
    settings = {"SKIP_MDS_QUERY": "1", "WORKER_HOSTNAMES": "localhost", "ACCELERATOR_TYPE": "v5litepod-4"}
    for name, value in settings.items():
        os.environ.setdefault(f"TPU_{name}", value)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    name, _, count = topology.partition("*")
    options: dict[str, Any] = {"num_slices": _whole_number(count, topology)} if count else {}
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # a v4 chip's two cores are one device, as on real ones
    if set(name.partition(":")[2].split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except (RuntimeError, ValueError, NotImplementedError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(
            f"Cannot compile for {topology}: {reason} (this needs libtpu, no TPU: pip install 'jax[tpu]')."
        ) from error


def _whole_number(text: str, topology: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"The number of slices in {topology!r} must be a whole number, such as v5e:8x8*2.")
    return int(text)
