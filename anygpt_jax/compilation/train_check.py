"""Compiles the train step of a config for a slice and says what it needs and how fast it would be."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from anygpt_jax import sharding, vocabulary
from anygpt_jax.compilation.hlo import Cost
from anygpt_jax.compilation.report import NO_ESTIMATE, measure
from anygpt_jax.compilation.slices import Chip, chip_of, devices_of
from anygpt_jax.model import attention
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.training import loop
from anygpt_jax.training.optimizer import make_optimizer
from anygpt_jax.training.state import abstract_state
from anygpt_jax.training.step import Objective, compile_train_step

# XLA does not cost Pallas kernels: they are taken to run at this part of the chip's peak. An assumption.
KERNEL_EFFICIENCY = 0.5


def check_train_step(config: Any, topology: str) -> tuple[dict[str, Any], str]:
    """Compiles the very step that `train` runs with this config on this slice.

    Args:
      config: a training config; rows have config.pack.seq_len tokens of the published vocabulary that it
        names ("base" if none).
      topology: such as "v5e:8x8".
    Returns:
      A report (plain JSON values, sizes in bytes per device) and the compiled program's text.
    Raises:
      report.DoesNotFit: the program is so large that the compiler gave up.
    """
    chip = chip_of(topology)
    vocab = vocabulary.published(config.vocabulary.published or "base")
    mesh = sharding.make_mesh(config.mesh, devices_of(topology))
    rows, length, accumulation = config.data.batch_size, config.pack.seq_len, config.optimizer.accumulation
    model = attention.for_mesh(loop.model_config(config.model, vocab), mesh, length)
    sharding.check_divisible(model, mesh, rows, accumulation, config.rules)
    sharding.check_slices(config.mesh.get("slices", 1), config.rules)
    objective = Objective.from_config(config, vocab)
    optimizer, rate = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(model, optimizer, objective.zero_sums(), mesh, config.rules)

    def compile_program() -> Any:
        """As training/loop.py does."""
        return compile_train_step(
            model,
            optimizer,
            rate,
            objective,
            mesh,
            config.rules,
            abstract,
            (rows, length),
            accumulation,
            config.scoped_vmem_kib,
        )

    summary = f"{rows} rows of {length} tokens, attention {model.attention}, remat {model.remat_policy}"
    state_is_large = _bytes_per_device(abstract) > chip.memory / 2
    advice = _advice(model, mesh, rows, accumulation, state_is_large)
    report, cost, text = measure("train", topology, mesh, summary, advice, compile_program)
    report |= {
        "rows": rows,
        "tokens_per_row": length,
        "attention": model.attention,
        "remat_policy": model.remat_policy,
        **_predicted(model, chip, mesh, cost, rows, length),
    }
    return report, text


def _predicted(
    model: DecoderConfig, chip: Chip, mesh: Mesh, cost: Cost, rows: int, length: int
) -> dict[str, Any]:
    """How fast the step would be, on each device."""
    flops = model.train_flops_per_token(length) * rows * length / mesh.size
    if not chip.clock:
        least = flops / chip.peak_flops
        return {
            "model_flops": flops,
            "prediction": f"at least {least:.3f} s a step for {flops:.3e} model FLOPs; {NO_ESTIMATE}",
        }
    kernel_flops = _kernel_flops(model, rows, length, cost.kernels) / mesh.size
    kernel_seconds = kernel_flops / chip.peak_flops / KERNEL_EFFICIENCY
    step_seconds = cost.cycles / chip.clock + kernel_seconds
    speed, mfu = rows * length / mesh.size / step_seconds, flops / step_seconds / chip.peak_flops
    chip_hours = 1e9 / speed / 3600
    return {
        "model_flops": flops,
        "step_seconds": step_seconds,
        "kernel_seconds": kernel_seconds,
        "tokens_per_second_per_device": speed,
        "chip_hours_per_billion_tokens": chip_hours,
        "mfu": mfu,
        "prediction": f"step {step_seconds:.3f} s, MFU {mfu:.1%} of {flops:.3e} model FLOPs, {speed:,.0f} "
        f"tokens/s per device, {chip_hours:,.0f} chip-hours per billion tokens",
    }


def _bytes_per_device(abstract: Any) -> int:
    """Of arrays that carry their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def _kernel_flops(model: DecoderConfig, rows: int, length: int, launches: int) -> float:
    """FLOPs of all attention kernels of a step: a forward launch has 2 products, dq 3, dk and dv 4.

    Launches beyond three a layer are the forward pass again.
    """
    if not launches:
        return 0.0
    product = rows * model.num_heads * model.head_dim * length**2  # multiply and add, half of the scores
    again = max(0, launches / model.num_layers - 3)
    return model.num_layers * product * (2 * (1 + again) + 3 + 4)


def _advice(model: DecoderConfig, mesh: Mesh, rows: int, accumulation: int, state_is_large: bool) -> str:
    """The knob to turn first."""
    per_device = math.ceil(rows / sharding.batch_shards(mesh) / accumulation)
    if state_is_large and mesh.shape["data"] > 1:
        return f"--config.mesh.fsdp={mesh.shape['fsdp'] * mesh.shape['data']} --config.mesh.data=1"
    if model.remat_policy != "full":
        return "--config.model.remat_policy=full"
    if per_device > 1:
        return f"--config.optimizer.accumulation={accumulation * per_device}"
    if model.loss_tile > 128:
        return "--config.model.loss_tile=128"
    return "a larger slice, or --config.mesh.tensor twice as large"
