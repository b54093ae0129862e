"""Compiles the train step of a config for a slice and says what it needs and how fast it would be."""

import math
import time
from typing import Any

from jax.sharding import Mesh

from anygpt_jax import sharding, vocabulary
from anygpt_jax.compilation import hlo
from anygpt_jax.compilation.slices import Chip, chip_of, devices_of
from anygpt_jax.model import attention
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.training import loop
from anygpt_jax.training.optimizer import make_optimizer
from anygpt_jax.training.state import abstract_state
from anygpt_jax.training.step import Objective, compile_train_step

# XLA does not cost Pallas kernels: they are taken to run at this part of the chip's peak. An assumption.
KERNEL_EFFICIENCY = 0.5
# Left for the runtime and for what fragments.
_RESERVED = 0.03


def check_train_step(config: Any, topology: str) -> tuple[dict[str, Any], str]:
    """Compiles the very step that `train` runs with this config on this slice.

    Args:
      config: a training config; rows have config.pack.seq_len tokens of the published vocabulary that it
        names ("base" if none).
      topology: such as "v5e:8x8".
    Returns:
      A report (plain JSON values, sizes in bytes per device) and the compiled program's text.
    """
    chip = chip_of(topology)
    start = time.perf_counter()
    compiled, model, mesh = _compile(config, topology)
    seconds = time.perf_counter() - start
    rows, length = config.data.batch_size, config.pack.seq_len
    text = compiled.as_text()
    cost = hlo.cost_of(text)
    flops = model.train_flops_per_token(length) * rows * length / mesh.size
    kernel_flops = _kernel_flops(model, rows, length, cost.kernels) / mesh.size
    kernel_seconds = kernel_flops / chip.peak_flops / KERNEL_EFFICIENCY
    step_seconds = cost.cycles / chip.clock + kernel_seconds
    report = {
        "topology": topology,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "rows": rows,
        "tokens_per_row": length,
        "attention": model.attention,
        "remat_policy": model.remat_policy,
        **_memory(compiled.memory_analysis(), chip),
        "largest_arrays": dict(sorted(cost.arrays.items(), key=lambda item: -item[1])[:10]),
        "model_flops": flops,
        "cycles": cost.cycles,
        "kernel_launches": cost.kernels,
        "collectives": {kind: {"launches": n, "bytes": b} for kind, (n, b) in cost.collectives.items()},
        "by_operation": dict(cost.by_operation.most_common(10)),
        "step_seconds": step_seconds,
        "kernel_seconds": kernel_seconds,
        "tokens_per_second_per_device": rows * length / mesh.size / step_seconds,
        "mfu": flops / step_seconds / chip.peak_flops,
        "compile_seconds": seconds,
    }
    if not report["fits"]:
        report["advice"] = _advice(model, mesh, rows, config.optimizer.accumulation, report)
    return report, text


def _compile(config: Any, topology: str) -> tuple[Any, DecoderConfig, Mesh]:
    """The compiled step, as training/loop.py makes it."""
    vocab = vocabulary.published(config.vocabulary.published or "base")
    mesh = sharding.make_mesh(config.mesh, devices_of(topology))
    shape, accumulation = (config.data.batch_size, config.pack.seq_len), config.optimizer.accumulation
    model = attention.for_mesh(loop.model_config(config.model, vocab), mesh, shape[1])
    sharding.check_divisible(model, mesh, shape[0], accumulation)
    objective = Objective.from_config(config, vocab)
    optimizer, rate = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(model, optimizer, objective.zero_sums(), mesh, config.rules)
    compiled = compile_train_step(
        model, optimizer, rate, objective, mesh, config.rules, abstract, shape, accumulation
    )
    return compiled, model, mesh


def _memory(memory: Any, chip: Chip) -> dict[str, Any]:
    """Bytes of a device, and whether they fit the chip."""
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    limit = round(chip.memory * (1 - _RESERVED))
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "total_bytes": total,
        "limit_bytes": limit,
        "fits": total <= limit,
    }


def _kernel_flops(model: DecoderConfig, rows: int, length: int, launches: int) -> float:
    """FLOPs of all attention kernels of a step: a forward launch has 2 products, dq 3, dk and dv 4.

    Launches beyond three a layer are the forward pass again.
    """
    if not launches:
        return 0.0
    product = rows * model.num_heads * model.head_dim * length**2  # multiply and add, half of the scores
    again = max(0, launches / model.num_layers - 3)
    return model.num_layers * product * (2 * (1 + again) + 3 + 4)


def _advice(model: DecoderConfig, mesh: Mesh, rows: int, accumulation: int, report: dict[str, Any]) -> str:
    """The knob to turn first."""
    per_device = math.ceil(rows / sharding.batch_shards(mesh) / accumulation)
    if report["argument_bytes"] > report["limit_bytes"] / 2 and mesh.shape["data"] > 1:
        return f"--config.mesh.fsdp={mesh.shape['fsdp'] * mesh.shape['data']} --config.mesh.data=1"
    if model.remat_policy != "full":
        return "--config.model.remat_policy=full"
    if per_device > 1:
        return f"--config.optimizer.accumulation={accumulation * per_device}"
    if model.loss_tile > 128:
        return "--config.model.loss_tile=128"
    return "a larger slice, or --config.mesh.tensor twice as large"
