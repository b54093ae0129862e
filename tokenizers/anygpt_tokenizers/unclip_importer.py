"""A diffusers directory of Stable unCLIP -> a directory that `UnclipDecoder.from_pretrained` reads.

Every key of a weights file is used, or known and left out; anything else is an error. So is every field of a
config that asks for something else than these networks do. Nothing is unpickled freely, and arrays go from
file to file one at a time. Left out are the CLIP vision tower and the autoencoder's encoder.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from anygpt_tokenizers import unclip_configs as configs
from anygpt_tokenizers.checkpoint_files import read_checkpoint, to_numpy, write_new_directory
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_text import ClipText, TextSpec
from anygpt_tokenizers.codec import CONFIG_FILE, WEIGHTS_FILE, config_mistakes
from anygpt_tokenizers.safetensors_file import write_arrays
from anygpt_tokenizers.unclip import abstract_params
from anygpt_tokenizers.unclip_prompts import TOKENIZER_FILES
from anygpt_tokenizers.unclip_spec import DTYPES

# Our names of modules -> the originals'; kernels, scales and biases are weights and biases of those.
RESNET = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "embedding": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION_PARTS = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
TRANSFORMER = {
    "norm": "norm",
    "in": "proj_in",
    "out": "proj_out",
    "self_norm": "transformer_blocks.0.norm1",
    "text_norm": "transformer_blocks.0.norm2",
    "ff_norm": "transformer_blocks.0.norm3",
    "ff_in": "transformer_blocks.0.ff.net.0.proj",
    "ff_out": "transformer_blocks.0.ff.net.2",
    **{
        f"{ours}_{part}": f"transformer_blocks.0.{theirs}.{name}"
        for ours, theirs in (("self", "attn1"), ("text", "attn2"))
        for part, name in ATTENTION_PARTS.items()
    },
}
PIXEL_ATTENTION = {"norm": "group_norm", **ATTENTION_PARTS}
UNET = {
    "time/in": "time_embedding.linear_1",
    "time/out": "time_embedding.linear_2",
    "label/in": "class_embedding.linear_1",
    "label/out": "class_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
VAE = {
    "conv_latents": "post_quant_conv",
    "conv_in": "decoder.conv_in",
    "norm_out": "decoder.conv_norm_out",
    "conv_out": "decoder.conv_out",
}
TEXT_TABLES = {
    "tokens": "embeddings.token_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
}
TEXT_BLOCK = {
    "attention_norm": "layer_norm1",
    **{part: f"self_attn.{part[0]}_proj" for part in ("query", "key", "value")},
    "out": "self_attn.out_proj",
    "ff_norm": "layer_norm2",
    "ff_in": "mlp.fc1",
    "ff_out": "mlp.fc2",
}
STAGE = re.compile(r"(down|mid|up)(?:_(\d+))?_(resnet|attention|sample)(?:_(\d+))?")
OLD_VAE_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")

# Keys that decide nothing here, by the directory that they are in.
LEFT_OUT = {
    "unet": None,
    "vae": re.compile(r"encoder\..*|quant_conv\..*"),
    "text_encoder": re.compile(r"embeddings\.position_ids"),
    "image_normalizer": None,
}
FILES = ("diffusion_pytorch_model", "model", "pytorch_model")
OTHER_WEIGHTS = re.compile(r"\.(safetensors|bin)(\.index\.json)?$")  # shards, .bf16, .non_ema: not read


class Entry(NamedTuple):
    """An array to be written: its name and shape, and what makes it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


class Source:
    """One directory's weights under canonical keys, and which of them were used.

    UserError if there are none, or if two keys are spellings of one.
    """

    def __init__(self, folder: Path, canonical: Callable[[str], str] = str):
        self.place = _weights_file(folder)
        self.tensors = read_checkpoint(self.place)
        self.part = folder.name
        self.original: dict[str, str] = {}
        for key in self.tensors:
            name = canonical(key)
            if name in self.original:
                twice = f"{self.original[name]!r} and {key!r}"
                raise UserError(f"{self.place}: {twice} are spellings of one weight.")
            self.original[name] = key
        self.used: set[str] = set()

    def take(self, key: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        """What reads the array of a key; UserError if it is missing or has another shape, or when it is read
        and holds a number that is not finite."""
        if key not in self.original:
            raise UserError(f"{self.place}: the key {key!r} is missing.")
        original = self.original[key]
        tensor = self.tensors[original]
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{self.place}: {original!r} has the shape {tuple(tensor.shape)}; with this config it must "
                f"be {shape}."
            )
        self.used.add(key)

        def read() -> np.ndarray:
            array = to_numpy(tensor, self.place, original)
            if not np.isfinite(array).all():
                raise UserError(f"{self.place}: {original!r} holds a number that is not finite.")
            return array

        return read

    def finish(self) -> int:
        """How many keys were left out; UserError names one that nobody knows."""
        rest = [key for key in self.original if key not in self.used]
        known = LEFT_OUT[self.part]
        unknown = [self.original[key] for key in rest if known is None or not known.fullmatch(key)]
        if unknown:
            raise UserError(f"{self.place}: the key {min(unknown)!r} is not known.")
        return len(rest)


def import_unclip(
    src: str | os.PathLike, out: str | os.PathLike, param_dtype: str = "float32", dtype: str = "float32"
) -> dict:
    """Writes a Stable unCLIP of diffusers' format to the new directory `out`.

    Args:
      src: directory with unet/, vae/, text_encoder/, tokenizer/, image_normalizer/, scheduler/ and
        image_noising_scheduler/.
      out: must not exist yet.
      param_dtype: "float32" or "bfloat16", of the arrays that are written.
      dtype: "float32" or "bfloat16", what the decoder computes in when it is read again.

    Returns:
      The config.json that was written; its "left_out" says what of `src` was not needed, and how many keys
      that are.
    """
    if dtype not in DTYPES:
        raise UserError(f"The unCLIP decoder computes in {' or '.join(DTYPES)}, not in {dtype}.")
    src = Path(src)
    with config_mistakes(src, ""):
        spec = configs.read_spec(src)
        shapes = abstract_params(spec)
        tokens = configs.empty_prompt_tokens(src / "tokenizer", spec.text)
    unet = Source(src / "unet")
    vae = Source(src / "vae", lambda key: OLD_VAE_ATTENTION.sub(_new_vae_name, key))
    text = Source(src / "text_encoder", lambda key: key.removeprefix("text_model."))
    normalizer = Source(src / "image_normalizer")
    width = spec.embedding_dim
    entries = [
        *_module_entries("unet", shapes["unet"], unet, lambda path: _unet_key(path, len(spec.unet.channels))),
        *_module_entries("vae", shapes["vae"], vae, lambda path: _vae_key(path, len(spec.vae.channels))),
        *(
            Entry(f"normalizer/{name}", (width,), _ravelled(normalizer.take(name, (1, width))))
            for name in ("mean", "std")
        ),
    ]
    text_entries = _text_entries(spec.text, text)
    left_out = {source.part: source.finish() for source in (unet, vae, text, normalizer)}
    config = {
        "type": "unclip",
        "dtype": dtype,
        **dataclasses.asdict(spec),
        "empty_prompt_tokens": [int(token) for token in tokens],
        "left_out": {
            **{f"keys of {part}": count for part, count in left_out.items() if count},
            "folders": [name for name in configs.IGNORED_FOLDERS if (src / name).is_dir()],
        },
    }

    def write(folder: Path) -> None:
        empty = Entry("empty_prompt", (spec.text.positions, spec.unet.text_dim), lambda: encoded(tokens))
        arrays = {entry.name: entry for entry in (*entries, *text_entries, empty)}
        shapes = {name: entry.shape for name, entry in arrays.items()}
        write_arrays(folder / WEIGHTS_FILE, shapes, np.dtype(param_dtype), lambda name: arrays[name].make())
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        for name in TOKENIZER_FILES:  # for prompts; the empty one needs none
            if (src / "tokenizer" / name).is_file():
                shutil.copyfile(src / "tokenizer" / name, folder / name)

    def encoded(tokens: np.ndarray) -> np.ndarray:
        params = traverse_util.unflatten_dict(
            {entry.name.removeprefix("text/"): _float32(entry.make()) for entry in text_entries}, sep="/"
        )
        return np.asarray(ClipText(spec.text).apply({"params": params}, tokens[None])[0])

    write_new_directory(Path(out), write)
    return config


def _module_entries(
    name: str, shapes: dict, source: Source, key_of: Callable[[tuple[str, ...]], str]
) -> Iterator[Entry]:
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        read = source.take(f"{key_of(path[:-1])}.{_leaf(path)}", _their_shape(leaf.shape, path))
        yield Entry("/".join((name, *path)), leaf.shape, _oriented(read, path))


def _text_entries(spec: TextSpec, source: Source) -> list[Entry]:
    """All of the text encoder; its blocks are stacked."""
    tokens = jax.ShapeDtypeStruct((1, spec.positions), jnp.int32)
    shapes = jax.eval_shape(ClipText(spec).init, jax.random.key(0), tokens)["params"]
    entries = []
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        if path[0] == "blocks":
            shape = _their_shape(leaf.shape[1:], path)
            stem = f"{TEXT_BLOCK[path[1]]}.{_leaf(path)}"
            keys = [f"encoder.layers.{layer}.{stem}" for layer in range(spec.num_layers)]
            make = _stacked([_oriented(source.take(key, shape), path) for key in keys])
        else:
            key = TEXT_TABLES.get(path[0]) or f"final_layer_norm.{_leaf(path)}"
            make = source.take(key, leaf.shape)
        entries.append(Entry("/".join(("text", *path)), leaf.shape, make))
    return entries


def _unet_key(path: tuple[str, ...], levels: int) -> str:
    """The original's module of one of ours."""
    return UNET.get("/".join(path)) or _stage_key(path, levels, TRANSFORMER)


def _vae_key(path: tuple[str, ...], levels: int) -> str:
    return VAE.get(path[0]) or f"decoder.{_stage_key(path, levels, PIXEL_ATTENTION)}"


def _stage_key(path: tuple[str, ...], levels: int, attention: dict[str, str]) -> str:
    """Of a block's module. On the way up the originals count from the coarsest level."""
    way, level, kind, index = STAGE.fullmatch(path[0]).groups()
    if way == "mid":
        stem = "mid_block"
    else:
        stem = f"{way}_blocks.{int(level) if way == 'down' else levels - 1 - int(level)}"
    if kind == "sample":
        return f"{stem}.{way}samplers.0.conv"
    names = RESNET if kind == "resnet" else attention
    return f"{stem}.{kind}s.{index}.{names[path[1]]}"


def _leaf(path: tuple[str, ...]) -> str:
    return "bias" if path[-1] == "bias" else "weight"


def _their_shape(shape: tuple[int, ...], path: tuple[str, ...]) -> tuple[int, ...]:
    """Kernels are [out, in] there, and those of convolutions [out, in, height, width]."""
    if path[-1] != "kernel":
        return shape
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])


def _oriented(read: Callable[[], np.ndarray], path: tuple[str, ...]) -> Callable[[], np.ndarray]:
    if path[-1] != "kernel":
        return read

    def oriented() -> np.ndarray:
        array = read()
        return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)

    return oriented


def _stacked(parts: list[Callable[[], np.ndarray]]) -> Callable[[], np.ndarray]:
    return lambda: np.stack([part() for part in parts])


def _ravelled(read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: read().ravel()


def _float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _new_vae_name(found: re.Match) -> str:
    new = ATTENTION_PARTS["out" if found[2] == "proj_attn" else found[2]]
    return f"{found[1]}.{new}."


def _weights_file(folder: Path) -> Path:
    """The weights of a folder, safetensors before torch's format, full precision before half."""
    for variant in ("", ".fp16"):
        for suffix in ("safetensors", "bin"):
            for stem in FILES:
                if (folder / f"{stem}{variant}.{suffix}").is_file():
                    return folder / f"{stem}{variant}.{suffix}"
    others = sorted(path.name for path in folder.iterdir() if OTHER_WEIGHTS.search(path.name))
    unread = f" (not {others[0]}: save the model again, as one file, full or fp16)" if others else ""
    raise UserError(f"{folder} has no weights: no {' or '.join(FILES)} with .safetensors or .bin{unread}.")
