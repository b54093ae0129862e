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
    state, gradients = _bytes_per_device(abstract), _bytes_per_device(abstract.params)
    knob = advice(config, model, mesh, chip.memory * chip.usable, state, gradients)
    report, cost, text = measure("train", topology, mesh, summary, knob, compile_program)
    report |= {
        "rows": rows,
        "tokens_per_row": length,
        "attention": model.attention,
        "remat_policy": model.remat_policy,
        **_predicted(model, chip, mesh, cost, rows, length, accumulation),
    }
    return report, text


def _predicted(
    model: DecoderConfig, chip: Chip, mesh: Mesh, cost: Cost, rows: int, length: int, accumulation: int
) -> dict[str, Any]:
    """How fast the step would be, on each device."""
    flops = model.train_flops_per_token(length) * rows * length / mesh.size
    if not chip.clock:
        least = flops / chip.peak_flops
        return {
            "model_flops": flops,
            "prediction": f"at least {least:.3f} s a step for {flops:.3e} model FLOPs; {NO_ESTIMATE}",
        }
    kernel_flops = kernel_flops_of(model, rows, length, cost.kernels / accumulation) / mesh.size
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


def kernel_flops_of(model: DecoderConfig, rows: int, length: int, launches: float) -> float:
    """FLOPs of all attention kernels of a step: a forward launch has 2 products, dq 3, dk and dv 4.

    `launches`: for one of the parts that accumulation makes of a batch; beyond three a layer they are the
    forward pass again.
    """
    if not launches:
        return 0.0
    product = rows * model.num_heads * model.head_dim * length**2  # multiply and add, half of the scores
    again = max(0, launches / model.num_layers - 3)
    return model.num_layers * product * (2 * (1 + again) + 3 + 4)


def advice(config: Any, model: DecoderConfig, mesh: Mesh, limit: float, state: int, gradients: int) -> str:
    """The knob to turn first if the step does not fit.

    Args:
      limit, state, gradients: bytes of a device: that a program may take, of the train state, of the
        gradients, all of which are there at once when they are clipped.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in sharding.MESH_AXES)
    slices, accumulation = config.mesh.get("slices", 1), config.optimizer.accumulation
    # How many copies of the state a slice holds. Between slices there have to be copies.
    copies = 1 if sharding.divides_over_data(config.rules) else data // slices
    fits_divided = (state + gradients) / copies <= limit and model.embed_dim % (fsdp * copies) == 0
    if state > limit / 2 and copies > 1 and fits_divided:
        return f"--config.mesh.fsdp={fsdp * copies} --config.mesh.data={slices}"
    if state + gradients > limit:
        alone = f"{(state + gradients) / 2**30:.2f} GiB"
        return f"more devices in a slice: the train state and the gradients alone take {alone} of each"
    if model.remat_policy != "full":
        return "--config.model.remat_policy=full"
    per_device = config.data.batch_size // (sharding.batch_shards(mesh) * accumulation)
    if per_device > 1:
        return f"--config.optimizer.accumulation={accumulation * per_device}"
    if model.loss_tile > 128:
        return "--config.model.loss_tile=128"
    if fsdp % 2 == 0 and all(size % (2 * tensor) == 0 for size in model.tensor_sizes):
        return (
            f"--config.mesh.tensor={2 * tensor} --config.mesh.fsdp={fsdp // 2} "
            f"--config.optimizer.accumulation={2 * accumulation}"
        )
    return "shorter rows: pack with a smaller --config.pack.seq_len"
