"""TPU slices by topology name, and devices to compile for where there are none."""

import dataclasses
import os
from typing import Any

from anygpt_tokenizers.cli import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """memory: bytes of HBM; peak_flops: dense bfloat16 per second; clock: of the compiler's cycles, in Hz."""

    memory: int
    peak_flops: float
    clock: float


# The vendor's data sheets. v5 is what libtpu calls v5p.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1.05e9),
    "v5e": Chip(16 * 2**30, 197e12, 1.5e9),
    "v5": Chip(95 * 2**30, 459e12, 1.75e9),
    "v6e": Chip(32 * 2**30, 918e12, 1.75e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:8x8"; a UserError lists the known ones."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS or ":" not in topology:
        raise UserError(
            f"There is no topology {topology!r}; it is CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as "
            "v5e:8x8 or v4:4x4x4."
        )
    return CHIPS[kind]


def devices_of(topology: str) -> list[Any]:
    """Devices of a slice, to compile for and not to run on. Needs libtpu, no TPU.

    UserError where libtpu is missing or does not know the topology.
    """
    chip_of(topology)
    # Else libtpu asks Google Cloud's metadata server what machine this is, and complains on stderr.
    settings = {"SKIP_MDS_QUERY": "1", "WORKER_HOSTNAMES": "localhost", "ACCELERATOR_TYPE": "v5litepod-4"}
    for name, value in settings.items():
        os.environ.setdefault(f"TPU_{name}", value)
    from jax.experimental import topologies

    try:
        # A v4 chip's two cores are one device, as they are on real ones.
        options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (RuntimeError, ValueError, NotImplementedError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(
            f"Cannot compile for {topology}: {reason} (this needs libtpu, no TPU: pip install 'jax[tpu]')."
        ) from error
