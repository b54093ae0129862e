"""The layout of SEED-2's published files: which of their tensors is which parameter of `SeedNet`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.codec import shapes_of_net
from anygpt_tokenizers.seed_net import SeedNet, SeedSpec

VISION = "visual_encoder."
# The Q-Formers: our stem in front of "pairs/" -> the original's in front of "bert."
QFORMERS = {"qformer/": "Qformer.", "head/reverse/": "Reverse_Qformer."}
LAYERS = "bert.encoder.layer."
# Our names in the blocks of vision tower and decode head -> the original's.
BLOCK_KEYS = {
    "norm_1": "norm1",
    "qkv": "attn.qkv",
    "attention_out": "attn.proj",
    "norm_2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
BIASES = ("query_bias", "key_bias", "value_bias")  # as they lie in the head's attn.qkv.bias
QFORMER_KEYS = {
    **{
        f"{ours}_{part}": f"{theirs}.{name}"
        for ours, theirs in (("self", "attention"), ("cross", "crossattention"))
        for part, name in {
            "query": "self.query",
            "key": "self.key",
            "value": "self.value",
            "out": "output.dense",
            "norm": "output.LayerNorm",
        }.items()
    },
    "up": "intermediate_query.dense",
    "down": "output_query.dense",
    "norm": "output_query.LayerNorm",
}
MODULE_KEYS = {
    "vision_norm": "ln_vision",
    "qformer/queries_norm": "Qformer.bert.embeddings.LayerNorm",
    "head/reverse/queries_norm": "Reverse_Qformer.bert.embeddings.LayerNorm",
    "encode_in": "encode_task_layer.0",
    "encode_out": "encode_task_layer.2",
    "head/decode_in": "decode_task_layer.0",
    "head/decode_out": "decode_task_layer.2",
    "head/project": "distill_image_proj",
}
ARRAY_KEYS = {
    "vision/class_token": f"{VISION}cls_token",
    "vision/positions": f"{VISION}pos_embed",
    "vision/patch/kernel": f"{VISION}patch_embed.proj.weight",
    "vision/patch/bias": f"{VISION}patch_embed.proj.bias",
    "qformer/queries": "query_tokens",
    "head/reverse/queries": "reverse_tokens",
    "codebook": "quantize.embedding.weight",
    "head/positions": "pos_embed_image",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
      keys: one, or one per layer; the arrays are stacked then.
      shape: of each array there.
      convert: one array there -> ours.
      stacked: whether there is an axis of layers.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]
    stacked: bool


def sources_of(spec: SeedSpec) -> dict[str, Source]:
    """By parameter of `SeedNet` ("vision/blocks/qkv/kernel"): where it comes from."""
    return {name: _source(name, shape, spec) for name, shape in shapes_of(spec).items()}


def training_keys(spec: SeedSpec) -> list[str]:
    """The keys of SEED's module that neither encoding nor decoding uses."""
    parts = [f"{name}.{leaf}" for name in BLOCK_KEYS.values() for leaf in ("weight", "bias")]
    blocks = [f"blocks.{index}.{part}" for index in range(spec.head_layers) for part in parts]
    qformers = list(QFORMERS.values())[: 2 if spec.reverse_layers else 1]
    return ["pos_embed", *(f"{stem}bert.embeddings.position_ids" for stem in qformers), *blocks]


def shapes_of(spec: SeedSpec) -> dict[str, tuple[int, ...]]:
    pixels = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.uint8)
    return shapes_of_net(SeedNet(spec), pixels)


def _source(name: str, shape: tuple[int, ...], spec: SeedSpec) -> Source:
    if "/blocks/" in name:
        return _block_source(name, shape[1:], spec)
    module, _, leaf = name.rpartition("/")
    if "/pairs/" in module:
        *_, kind, part = module.split("/")
        stem = QFORMERS[module.partition("pairs/")[0]] + LAYERS
        indices = range(int(kind == "plain"), 2 * shape[0], 2)
        keys = tuple(f"{stem}{index}.{QFORMER_KEYS[part]}.{LEAVES[leaf]}" for index in indices)
        return _linear_source(keys, shape[1:], leaf, stacked=True)
    if name in ARRAY_KEYS:
        return _array_source(name, shape, spec)
    if module.startswith("head/down_"):
        stem = f"image_down.{2 * int(module.removeprefix('head/down_'))}"
    else:
        stem = MODULE_KEYS[module]
    return _linear_source((f"{stem}.{LEAVES[leaf]}",), shape, leaf, stacked=False)


def _block_source(name: str, shape: tuple[int, ...], spec: SeedSpec) -> Source:
    """Of a parameter "vision/blocks/..." or "head/blocks/...", of which a layer has `shape`."""
    net, _, *parts = name.split("/")
    stem = f"{VISION}blocks." if net == "vision" else "blocks_image."
    depth = spec.vision_layers if net == "vision" else spec.head_layers
    if parts[0] not in BIASES:
        keys = [f"{stem}{i}.{BLOCK_KEYS[parts[0]]}.{LEAVES[parts[1]]}" for i in range(depth)]
        return _linear_source(tuple(keys), shape, parts[1], stacked=True)
    if net == "vision":
        keys = [f"{stem}{i}.attn.{parts[0][0]}_bias" for i in range(depth)]
        return Source(tuple(keys), shape, np.asarray, True)
    keys, part, width = [f"{stem}{i}.attn.qkv.bias" for i in range(depth)], BIASES.index(parts[0]), shape[0]
    return Source(tuple(keys), (3 * width,), lambda a: a[part * width : (part + 1) * width], True)


def _linear_source(keys: tuple[str, ...], shape: tuple[int, ...], leaf: str, stacked: bool) -> Source:
    if leaf == "kernel":
        return Source(keys, shape[::-1], np.transpose, stacked)
    return Source(keys, shape, np.asarray, stacked)


def _array_source(name: str, shape: tuple[int, ...], spec: SeedSpec) -> Source:
    """Of a parameter in ARRAY_KEYS: they have leading axes of one there, and patches are a convolution."""
    keys, patch = (ARRAY_KEYS[name],), spec.patch_size
    if name == "vision/patch/kernel":
        there = (spec.vision_dim, 3, patch, patch)
        return Source(keys, there, lambda a: a.transpose(2, 3, 1, 0).reshape(shape), False)
    if name in ("codebook", "vision/patch/bias"):
        return Source(keys, shape, np.asarray, False)
    return Source(keys, (1,) * (3 - len(shape)) + shape, lambda a: a.reshape(shape), False)
