"""Compiles the sampler's program for a slice: prefill, then one token per row and step, in a KV cache."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax import sharding, vocabulary
from anygpt_jax.compilation.report import NO_ESTIMATE, measure
from anygpt_jax.compilation.slices import chip_of, devices_of
from anygpt_jax.model.decoder import init_boxed_params
from anygpt_jax.sampling.grammar import Grammar
from anygpt_jax.sampling.sampler import Sampler
from anygpt_jax.training import loop


def check_decode(config: Any, topology: str, rows: int, length: int) -> tuple[dict[str, Any], str]:
    """Compiles what `Sampler.sample` runs, for `rows` prompts of `length` / 2 slots and as many new tokens.

    The parameters are in the model's dtype, divided over all devices as mesh.tensor divides them.
    """
    chip = chip_of(topology)
    vocab = vocabulary.published("chat")
    devices = devices_of(topology)
    model = loop.model_config(config.model, vocab)
    most = math.gcd(*model.tensor_sizes)
    if "*" in topology or most % len(devices):
        raise UserError(
            f"The sampler's heads, tables and MLP would be divided over {len(devices)} devices ({topology}), "
            f"but it has to be one slice of a divisor of {most} devices for this model: choose a smaller one."
        )
    mesh = sharding.make_mesh({"tensor": len(devices)}, devices)
    new_slots = length // 2
    program = Sampler(model, Grammar(vocab))
    program.config, program.unrolled = model, False  # the sampler took what is right for this machine

    def compile_program() -> Any:
        boxed = jax.eval_shape(lambda: init_boxed_params(model, 0))
        shardings = sharding.param_shardings(boxed, mesh, config.rules)
        params = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, model.dtype, sharding=at),
            nn.unbox(boxed),
            shardings,
        )
        prompts = jax.ShapeDtypeStruct((rows, length - new_slots), jnp.int32)
        state = program.grammar.initial([None] * rows, [new_slots] * rows)
        settings = {name: np.zeros(rows, np.float32) for name in ("temperature", "top_p")}
        settings["top_k"] = np.zeros(rows, np.int32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        abstract = jax.eval_shape(lambda: (state, settings))
        with sharding.sharding_context(mesh, config.rules):
            jitted = jax.jit(program._generate, static_argnames="new_slots")
            lowered = jitted.lower(params, prompts, prompts, *abstract, keys, new_slots=new_slots)
            return lowered.compile()

    itemsize = jnp.dtype(model.dtype).itemsize
    weights = model.num_matmul_parameters * itemsize / mesh.size
    cache = 2 * model.num_layers * rows * length * model.num_kv_heads * model.head_dim * itemsize / mesh.size
    summary = f"{rows} rows, {length - new_slots} prompt slots and {new_slots} new tokens"
    advice = "a larger slice" if weights > chip.memory / 2 else f"--rows={max(1, rows // 2)}"
    report, cost, text = measure("decode", topology, mesh, summary, advice, compile_program)
    bound = (weights + cache) / chip.bandwidth
    reading = f"reading weights and cache once takes {1e3 * bound:.2f} ms"
    report |= {"rows": rows, "slots": length, "roofline_seconds_per_token": bound}
    if not chip.clock:
        return report | {"prediction": f"at best, {reading} a token; {NO_ESTIMATE}"}, text
    seconds = cost.cycles / chip.clock
    report |= {
        "seconds": seconds,
        "seconds_per_token": seconds / new_slots,
        "prediction": f"{seconds:.3f} s with the prompts, at most {1e3 * seconds / new_slots:.2f} ms a "
        f"token; {reading}",
    }
    return report, text
