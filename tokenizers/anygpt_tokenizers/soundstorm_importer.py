"""A published SoundStorm checkpoint -> a directory that `SoundStorm.from_pretrained` reads."""

import os
import re
from pathlib import Path

import numpy as np
from flax import traverse_util

from anygpt_tokenizers.checkpoint_files import State, as_float32, finite, read_state, write_new_directory
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.soundstorm import Options, SoundStorm
from anygpt_tokenizers.soundstorm_net import SoundStormSpec, shapes_of

# How AnyGPT decodes with its published model.
PUBLISHED = Options(steps=3, mode="reference")

# Our names inside a block -> the original's. Kernels are transposed, [out, in, kernel] there.
BLOCK_KEYS = {
    **{
        f"ff_{ours}_{part}": f"ff{theirs}.fn.{name}"
        for ours, theirs in (("in", 1), ("out", 2))
        for part, name in (("norm", "norm"), ("up", "fn.net.0"), ("down", "fn.net.3"))
    },
    "attention_norm": "attn.norm",
    "query": "attn.fn.to_q",
    "key_value": "attn.fn.to_kv",
    "attention_out": "attn.fn.to_out",
    "conv_norm": "conv.net1.0",
    "conv_in": "conv.net1.2",
    "conv": "conv.ds_conv.conv",
    "conv_out": "conv.net2.2",
    "norm": "post_norm",
}
OTHER_KEYS = {
    "code_embedding": "net.code_embeds.weight",
    "semantic_embedding": "semantic_token_emb.weight",
    "heads": "net.heads.0",
    "logits_norm": "net.to_logits.0",
    "logits_kernel": "net.to_logits.2.weight",
    "logits_bias": "net.to_logits.2.bias",
}
# The convolution module's parts in the first port, of which the published USLM file is made.
OLDER_NAMES = {"0": "net1.0", "2": "net1.2", "4.conv": "ds_conv.conv", "6": "net2.1", "7": "net2.2"}
OLDER = re.compile(r"(\.conv)\.net\.(0|2|4\.conv|6|7)\.")


def import_soundstorm(ckpt: str | os.PathLike, out: str | os.PathLike, heads: int = 8) -> SoundStorm:
    """Writes a SoundStorm checkpoint to the new directory `out`, and returns the model.

    It decodes as AnyGPT does: mode "reference", 3 steps.

    Args:
      ckpt: the state dict of AnyGPT's SoundStorm (or of the port it comes from), torch's or safetensors.
      out: must not exist yet, or be empty.
      heads: of the attention, the only size that the arrays don't show.
    """
    place, arrays, original = os.fspath(ckpt), {}, {}
    for key, value in read_state(Path(ckpt)).items():
        canonical = OLDER.sub(lambda found: f"{found[1]}.{OLDER_NAMES[found[2]]}.", key)
        arrays[canonical], original[canonical] = value, key
    spec = spec_of(arrays, original, heads, place)
    params, used = {}, set()
    for name, whole in shapes_of(spec).items():
        path, parts = tuple(name.split("/")), []
        for key in _keys(path, spec):
            if key not in arrays:
                raise UserError(f"{place}: the key {key!r} is missing.")
            shape = whole[1:] if path[0] == "blocks" else whole
            part, wanted = arrays[key], _original_shape(path, shape)
            # In these two, only the number of 1s beside the sizes differs between versions of einops.
            loose = path[-1] in ("conv_scale", "logits_bias") and part.size == np.prod(wanted)
            if part.shape != wanted and not loose:
                raise UserError(
                    f"{place}: {original[key]!r} has the shape {part.shape}, not {wanted} as by the others."
                )
            part = finite(as_float32(part), place, original[key])
            parts.append((part.transpose() if path[-1] == "kernel" else part).reshape(shape))
            used.add(key)
        params[path] = np.stack(parts) if path[0] == "blocks" else parts[0]
    unknown = sorted(set(arrays) - used)
    if unknown:
        raise UserError(f"{place}: the key {original[unknown[0]]!r} is not known.")
    model = SoundStorm(spec, traverse_util.unflatten_dict(params), PUBLISHED)
    write_new_directory(Path(out), model.save_pretrained)
    return model


def spec_of(arrays: State, original: dict[str, str], heads: int, place: str) -> SoundStormSpec:
    """The sizes that a checkpoint's arrays have; UserError names one that is missing or has other axes.

    `original` has the checkpoint's own name of each.
    """
    first = "net.conformer.layers.0."
    wanted = {
        "logits": ("net.to_logits.2.weight", "(levels, width, codes)"),
        "semantic": ("semantic_token_emb.weight", "(codes, width)"),
        "query": (f"{first}attn.fn.to_q.weight", "(out, width)"),
        "up": (f"{first}ff1.fn.fn.net.0.weight", "(out, width)"),
        "conv": (f"{first}conv.ds_conv.conv.weight", "(channels, 1, kernel)"),
    }
    shape = {}
    for name, (key, axes) in wanted.items():
        if key not in arrays:
            raise UserError(f"{place}: the key {key!r} is missing, so this is no SoundStorm.")
        shape[name] = arrays[key].shape
        if len(shape[name]) != axes.count(",") + 1 or not arrays[key].size:
            raise UserError(f"{place}: {original[key]!r} has the shape {shape[name]}, not {axes}.")
    levels, dim, size = shape["logits"]
    inner = shape["query"][0]
    if inner % heads:
        raise UserError(f"{place}: attention of width {inner} can't have {heads} heads.")
    layers = (re.match(r"net\.conformer\.layers\.(\d+)\.", key, re.ASCII) for key in arrays)
    depth = 1 + max(int(found[1]) for found in layers if found)
    return SoundStormSpec(
        dim=dim,
        depth=depth,
        heads=heads,
        head_dim=inner // heads,
        ff_mult=shape["up"][0] // dim,
        conv_expansion=shape["conv"][0] // dim,
        conv_kernel=shape["conv"][2],
        levels=levels,
        codebook_size=size,
        semantic_size=shape["semantic"][0],
    )


def _keys(path: tuple[str, ...], spec: SoundStormSpec) -> list[str]:
    """The original's keys of one parameter: one, or one per block."""
    if path[0] != "blocks":
        return [OTHER_KEYS[path[0]] + (f".{_leaf(path)}" if len(path) > 1 else "")]
    inner = "conv.net2.1.gamma" if path[1] == "conv_scale" else f"{BLOCK_KEYS[path[1]]}.{_leaf(path)}"
    return [f"net.conformer.layers.{layer}.{inner}" for layer in range(spec.depth)]


def _leaf(path: tuple[str, ...]) -> str:
    return "bias" if path[-1] == "bias" else "weight"


def _original_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an array has in the original; ours is `shape`."""
    if path[-1] != "kernel":
        return shape
    return (*shape[::-1], 1) if path[1] in ("conv_in", "conv_out") else shape[::-1]
