"""TPU slices and GPUs by topology name, and devices to compile for where there are none."""

import dataclasses
import os
from typing import Any

from anygpt_tokenizers.cli import UserError

from anygpt_jax.allocator import GPU_SHARE


@dataclasses.dataclass(frozen=True)
class Chip:
    """memory: bytes of HBM; peak_flops: dense bfloat16 per second; clock: of the compiler's cycles, in Hz, 0
    where it estimates none; bandwidth: of the HBM, bytes per second; usable: the share of the memory that a
    program may take."""

    memory: int
    peak_flops: float
    clock: float
    bandwidth: float
    usable: float = 0.97


# The vendors' data sheets. v5 is what libtpu calls v5p; the two GPUs are the SXM ones.
TPUS = {
    "v4": Chip(32 * 2**30, 275e12, 1.05e9, 1228e9),
    "v5e": Chip(16 * 2**30, 197e12, 1.5e9, 819e9),
    "v5": Chip(95 * 2**30, 459e12, 1.75e9, 2765e9),
    "v6e": Chip(32 * 2**30, 918e12, 1.75e9, 1640e9),
}
GPUS = {
    "h100": Chip(79 * 2**30, 989e12, 0, 3350e9, GPU_SHARE),
    "h200": Chip(139 * 2**30, 989e12, 0, 4800e9, GPU_SHARE),
}
CHIPS = TPUS | GPUS

# What XLA:GPU asks of a GPU that is not there (its GpuTargetConfigProto): compute capability 9.0.
_HOPPER = """
platform_name: "CUDA"
device_description_str: "{name}"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  clock_rate_ghz: 1.98
  fpus_per_core: 128
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:8x8"; a UserError lists the known ones."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS or ":" not in topology:
        raise UserError(
            f"There is no topology {topology!r}; it is CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as "
            "v5e:8x8, v4:4x4x4 or h100:8, and v5e:8x8*2 for two such slices."
        )
    return CHIPS[kind]


def devices_of(topology: str) -> list[Any]:
    """Devices of a slice, of several ("v5e:8x8*2") or of a node of GPUs, to compile for and not to run on.

    Needs libtpu or JAX's CUDA plugin, no TPU or GPU. UserError where that is missing or does not know the
    topology.
    """
    chip_of(topology)
    on_gpu = topology.partition(":")[0] in GPUS
    options = _gpu_options(topology) if on_gpu else _tpu_options(topology)
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**options).devices
    except (RuntimeError, ValueError, NotImplementedError, OSError) as error:
        raise UserError(_refusal(topology, str(error).strip().splitlines()[0])) from error


def _refusal(topology: str, reason: str) -> str:
    """Why a topology cannot be compiled for, and what to do."""
    chip = topology.partition(":")[0]
    unknown = "INVALID_ARGUMENT: "  # so answers libtpu, which then is there
    if chip in TPUS and reason.startswith(unknown):
        shape = "4x4x4" if chip in ("v4", "v5") else "8x8"
        reason = reason.removeprefix(unknown)[:150].rstrip(".")
        return f"There is no slice {topology!r} ({reason}); choose one that there is, such as {chip}:{shape}."
    needed = "libtpu, no TPU: pip install 'jax[tpu]'"
    if chip in GPUS:
        needed = "JAX's CUDA plugin, no GPU: pip install 'jax[cuda12]'"
    return f"Cannot compile for {topology}: {reason[:150]} (this needs {needed})."


def _tpu_options(topology: str) -> dict[str, Any]:
    """Of `get_topology_desc`."""
    # Else libtpu asks Google Cloud's metadata server what machine this is, and complains on stderr; and a
    # second process that only compiles would wait for a lock that is meant for the use of a TPU.
    settings = {"SKIP_MDS_QUERY": "1", "WORKER_HOSTNAMES": "localhost", "ACCELERATOR_TYPE": "v5litepod-4"}
    for name, value in settings.items():
        os.environ.setdefault(f"TPU_{name}", value)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name, _, count = topology.partition("*")
    options: dict[str, Any] = {"platform": "tpu", "topology_name": name}
    if count:
        options["num_slices"] = _whole_number(count, topology)
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # a v4 chip's two cores are one device, as on real ones
    if set(name.partition(":")[2].split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return options


def _gpu_options(topology: str) -> dict[str, Any]:
    """Of `get_topology_desc`."""
    name, _, count = topology.partition(":")
    if not count.isdecimal() or not 1 <= int(count) <= 8:
        raise UserError(f"{topology!r} is no node of GPUs; it has 1 to 8, such as {name}:8.")
    chip = GPUS[name]
    target = _HOPPER.format(name=name, memory=chip.memory, bandwidth=round(chip.bandwidth))
    return {"platform": "cuda", "target_config": target, "topology": f"1x1x{count}"}


def _whole_number(text: str, topology: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"The number of slices in {topology!r} must be a whole number, such as v5e:8x8*2.")
    return int(text)
