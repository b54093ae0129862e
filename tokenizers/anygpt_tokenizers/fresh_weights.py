"""Fresh weights, drawn in ways that start fast: compiling a program that draws hundreds of arrays is slow."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def fresh_weights(shapes: dict, rng: jax.Array) -> dict:
    """Arrays for the nested dict of `shapes` (of `jax.eval_shape`), by their names and in their order.

    "slope" of Snake: 1. Arrays of one axis: 0. Others: normal, with a variance of one over the product of all
    axes but the last.
    """
    random = np.random.default_rng(np.asarray(jax.random.bits(rng, (4,))))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "slope":
            return jnp.asarray(np.ones(leaf.shape, np.float32))
        if len(leaf.shape) == 1:
            return jnp.asarray(np.zeros(leaf.shape, np.float32))
        values = random.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(values / np.float32(np.sqrt(np.prod(leaf.shape[:-1]))))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def initial_params(module: nn.Module, rng: jax.Array, *inputs: jax.Array) -> dict:
    """The parameters that Flax' initialisers give a module, drawn by XLA's own generator.

    The program of JAX's usual one takes several times as long to compile. The same key gives the same weights
    on the same kind of device.
    """
    key = jax.random.wrap_key_data(jax.random.bits(rng, (4,), jnp.uint32), impl="rbg")
    return jax.jit(module.init)(key, *inputs)["params"]
