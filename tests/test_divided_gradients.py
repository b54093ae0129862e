"""On a mesh the gradients are those of one device, and the input table is never whole on a device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax import sharding
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import Decoder, init_boxed_params, init_params
from anygpt_jax.model.loss import LossSpec, tiled_cross_entropy

RULES = sharding.DEFAULT_RULES
CONFIG = DecoderConfig.preset("dummy", vocab_size=256, num_real_rows=250, remat_policy="full")


def loss(params, tokens, shards):
    hidden, _ = Decoder(CONFIG).apply({"params": params}, tokens)
    targets, spec = jnp.roll(tokens, -1, 1), LossSpec(CONFIG.num_real_rows, 1e-4, 8, shards)
    return tiled_cross_entropy(hidden, params["unembedding"], targets, jnp.ones(tokens.shape), spec).total


def program(mesh, params, tokens, rules=RULES):
    """The compiled gradient on a mesh, and the parameters' shardings."""
    boxed = jax.eval_shape(lambda: init_boxed_params(CONFIG, 0))
    at = sharding.param_shardings(boxed, mesh, rules)
    gradient = jax.grad(lambda params, tokens: loss(params, tokens, sharding.batch_shards(mesh)))
    with sharding.sharding_context(mesh, rules):
        jitted = jax.jit(gradient, in_shardings=(at, sharding.batch_sharding(mesh)), out_shardings=at)
        return jitted.lower(params, tokens).compile(), at


@pytest.mark.parametrize("rules", [RULES, sharding.TWO_STEP_RULES], ids=["one step", "two steps"])
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_gradients_on_a_mesh_are_those_of_one_device(sizes, rules):
    mesh, params = sharding.make_mesh(sizes), init_params(CONFIG, 0)
    tokens = np.random.default_rng(0).integers(0, 250, (8, 16))
    compiled, at = program(mesh, params, tokens, rules)
    batch = jax.device_put(tokens, sharding.batch_sharding(mesh))
    divided = compiled(jax.device_put(params, at), batch)
    expected = jax.jit(jax.grad(loss), static_argnums=2)(params, tokens, 1)
    for ours, theirs in zip(jax.tree.leaves(divided), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * float(np.abs(theirs).max()))


def test_the_input_table_and_its_gradient_are_whole_on_no_device():
    tokens = np.zeros((8, 16), np.int32)
    compiled, _ = program(sharding.make_mesh({"fsdp": 8}), init_params(CONFIG, 0), tokens)
    text = compiled.as_text()
    assert "[256,32]" not in text  # [V, D]
    assert "all-to-all" in text


def test_weights_gathered_in_two_steps_are_halfway_between_them():
    mesh, tokens = sharding.make_mesh({"data": 2, "fsdp": 4}), np.zeros((8, 16), np.int32)
    compiled, at = program(mesh, init_params(CONFIG, 0), tokens, sharding.TWO_STEP_RULES)
    assert at["unembedding"].shard_shape((32, 256)) == (4, 256)
    text = compiled.as_text()
    for rows in (16, 32):  # of the output table, halfway and whole
        assert re.search(rf"f32\[{rows},256\]\S* all-gather\(", text), rows
