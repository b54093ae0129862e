"""The decoder's parameters beside the names and shapes that Hugging Face's LLaMA gives them.

A linear map of theirs is [outputs, inputs] in two axes; ours is [inputs …, outputs …] with heads as axes of
their own, and layers are stacked on axis 0. Both rotate the two halves of a head, so nothing is permuted.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np
from flax import traverse_util

from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import init_params

# Our path → (their name, axes of ours that are inputs; None where the two are not transposed).
_NAMES = {
    "embedding": ("model.embed_tokens.weight", None),
    "unembedding": ("lm_head.weight", 1),
    "final_norm/scale": ("model.norm.weight", None),
    "layers/attention_norm/scale": ("model.layers.{layer}.input_layernorm.weight", None),
    "layers/attention/query/kernel": ("model.layers.{layer}.self_attn.q_proj.weight", 1),
    "layers/attention/key/kernel": ("model.layers.{layer}.self_attn.k_proj.weight", 1),
    "layers/attention/value/kernel": ("model.layers.{layer}.self_attn.v_proj.weight", 1),
    "layers/attention/output/kernel": ("model.layers.{layer}.self_attn.o_proj.weight", 2),
    "layers/mlp_norm/scale": ("model.layers.{layer}.post_attention_layernorm.weight", None),
    "layers/mlp/gate/kernel": ("model.layers.{layer}.mlp.gate_proj.weight", 1),
    "layers/mlp/up/kernel": ("model.layers.{layer}.mlp.up_proj.weight", 1),
    "layers/mlp/down/kernel": ("model.layers.{layer}.mlp.down_proj.weight", 1),
}
# Constants that old files store; they follow from the config.
IGNORED_SUFFIX = "rotary_emb.inv_freq"
TABLES = {"embedding": 0, "unembedding": 1}  # path → its axis of vocabulary rows


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of theirs and where it goes.

    Attributes:
      path: our parameter. layer: its index on axis 0, None for a parameter that is not stacked.
      name: their name. shape: their shape, with the real rows of the vocabulary only.
      slice_shape: ours, of the layer or the whole, with the real rows only.
    """

    path: str
    layer: int | None
    name: str
    shape: tuple[int, ...]
    slice_shape: tuple[int, ...]

    @property
    def _transposed(self) -> bool:
        return _NAMES[self.path][1] is not None

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """[outputs, inputs] → our slice (a view where that is possible)."""
        return (theirs.T if self._transposed else theirs).reshape(self.slice_shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        return ours.reshape(self.shape[::-1]).T if self._transposed else ours


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of every parameter, tables padded."""
    tree = jax.eval_shape(lambda: init_params(config, 0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def tensors(config: DecoderConfig) -> Iterator[Tensor]:
    """All of their tensors, in the order of our parameters, layers innermost."""
    for path, shape in parameter_shapes(config).items():
        template, inputs = _NAMES[path]
        if path in TABLES:
            axis = TABLES[path]
            shape = (*shape[:axis], config.num_real_rows, *shape[axis + 1 :])
        stacked = "{layer}" in template
        part = shape[1:] if stacked else shape
        theirs = part if inputs is None else (math.prod(part[inputs:]), math.prod(part[:inputs]))
        for layer in range(config.num_layers) if stacked else [None]:
            yield Tensor(path, layer, template.format(layer=layer), theirs, part)
