"""Every attention back end computes what the written-out reference computes, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax import sharding
from anygpt_jax.model import attention, splash
from anygpt_jax.model.config import DecoderConfig

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 256, 4, 2, 128
# Of bfloat16: both round the weights to 8 bits before they multiply the values, but not the same weights.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def inputs(dtype):
    rng = np.random.default_rng(0)
    shapes = [(BATCH, LENGTH, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    # Three documents, and padding at the end of the second row.
    segments = np.ones((BATCH, LENGTH), np.int32)
    segments[0, 100:] = 2
    segments[1, 150:] = 0
    return arrays, jnp.asarray(segments)


def value_and_gradients(function, arrays):
    *qkv, cotangent = arrays
    out, pullback = jax.vjp(function, *qkv)
    return [np.asarray(array, np.float32) for array in (out, *pullback(cotangent))]


def reference(segments):
    bias = attention.mask_bias(segments, segments, 0)
    return lambda query, key, value: attention.attend(query, key, value, bias)


def assert_equal_to_reference(function, dtype):
    arrays, segments = inputs(dtype)
    expected = value_and_gradients(reference(segments), arrays)
    for ours, theirs in zip(value_and_gradients(function(segments), arrays), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[dtype] * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_splash_attention_equals_the_reference(dtype):
    def function(segments):
        return lambda q, k, v: splash.attend(q, k, v, segments, interpret=True)

    assert_equal_to_reference(function, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_library_call_that_cudnn_serves_equals_the_reference(dtype):
    def function(segments):
        return lambda q, k, v: attention.library_attend(q, k, v, segments, "xla")

    assert_equal_to_reference(function, dtype)


def test_splash_attention_on_a_mesh_equals_one_device():
    arrays, segments = inputs("float32")
    alone = splash.attend(*arrays[:3], segments, interpret=True)
    mesh = sharding.make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    with sharding.sharding_context(mesh, sharding.DEFAULT_RULES):
        divided = jax.jit(lambda *a: splash.attend(*a, interpret=True))(*arrays[:3], segments)
    np.testing.assert_allclose(divided, alone, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotation_by_a_product_is_the_rotation(dtype):
    (query, *_), _ = inputs(dtype)
    tables = attention.rope_tables(jnp.tile(jnp.arange(LENGTH), (BATCH, 1)), LENGTH, HEAD_DIM, 1e4)
    expected = attention.apply_rope(query, tables)
    np.testing.assert_array_equal(attention.apply_rope_by_product(query, tables), expected)


def test_auto_is_einsum_on_a_cpu_and_a_choice_stands():
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    config = DecoderConfig.preset("llama2-7b", vocab_size=128, num_real_rows=128)
    assert attention.for_mesh(config, mesh, 4096).attention == "einsum"
    chosen = DecoderConfig.preset("llama2-7b", vocab_size=128, num_real_rows=128, attention="splash")
    assert attention.for_mesh(chosen, mesh, 4096).attention == "splash"
