"""SEED-2's published files -> a directory that `SeedCodec.from_pretrained` reads.

seed_quantizer.pt (seed-tokenizer-2 on the hub) has everything but the frozen vision tower, which its users
take from LAVIS: eva_vit_g.pth. A BLIP-2 directory of transformers has the same tower. Tensors are read and
written one by one. Whatever SEED's own module declares must be there, the parts that only training uses
included, so that a damaged file is noticed; what the published file has beyond that is counted and listed.
"""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.checkpoint_files import (
    check_free,
    finite,
    read_tensors,
    to_numpy,
    write_new_directory,
)
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import CONFIG_FILE, WEIGHTS_FILE
from anygpt_tokenizers.safetensors_file import map_arrays, write_arrays
from anygpt_tokenizers.seed import SeedCodec
from anygpt_tokenizers.seed_layout import (
    LAYERS,
    QFORMERS,
    VISION,
    Source,
    shapes_of,
    sources_of,
    training_keys,
)
from anygpt_tokenizers.seed_net import SeedSpec

VIT_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
DTYPES = ("float32", "bfloat16")  # what the unCLIP decoder can compute in, too
PUBLISHED = SeedSpec()
LAYER, REVERSE_LAYER = (stem + LAYERS for stem in QFORMERS.values())


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the files' keys.

    Attributes:
      used, training_only: numbers of keys.
      extra: keys that SEED's module doesn't declare: their number and elements, by name without numbers. What
        is no tensor, such as a trainer's "epoch", counts as no elements.
    """

    used: int
    training_only: int
    extra: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        keys = sum(count for count, _ in self.extra.values())
        elements = sum(size for _, size in self.extra.values())
        lines = [
            f"{self.used} keys used, {self.training_only} that only training uses left out, "
            f"{keys} more of {elements:,} elements ignored{':' if keys else ''}"
        ]
        return "\n".join(
            [*lines, *(f"  {count:4d} × {name} ({size:,})" for name, (count, size) in self.extra.items())]
        )


def import_seed(
    quantizer: str | os.PathLike,
    vit: str | os.PathLike | None,
    out: str | os.PathLike,
    dtype: str = "float32",
    param_dtype: str = "float32",
    num_heads: tuple[int, int, int] = (16, 12, 12),
) -> tuple[SeedCodec, LoadReport]:
    """Writes SEED-2's tokenizer to the new directory `out`; returns it, and what became of the files' keys.

    Args:
      quantizer: seed_quantizer.pt, or the same as safetensors.
      vit: eva_vit_g.pth, or the same as safetensors, or a BLIP-2 directory of transformers (safetensors).
      out: must not exist yet, or be empty.
      dtype: of the products of vision tower and Q-Former when the codec runs, "float32" or "bfloat16".
      param_dtype: of the stored weights.
      num_heads: of vision tower, Q-Former and decode head, the only sizes that the arrays don't show.

    UserError names a file or key that is missing, or a tensor of the wrong shape or of no finite numbers.
    """
    if dtype not in DTYPES:
        raise UserError(f"SEED-2 runs in {' or '.join(DTYPES)}, not in dtype={dtype}.")
    out = Path(out)
    check_free(out)
    tensors, others = read_tensors(Path(quantizer))
    places = {VISION: _read_vit(vit, tensors, others), "": os.fspath(quantizer)}
    spec = spec_of(tensors, num_heads, places)
    sources, training = sources_of(spec), training_keys(spec)
    needed = [key for source in sources.values() for key in source.keys]
    for key in (*needed, *training):
        if key not in tensors:
            raise _missing(key, places)
    _check_shapes(tensors, sources, places)
    config = {
        "type": SeedCodec.type,
        "modality": "image",
        "num_codebooks": 1,
        "dtype": dtype,
        "storage_dtype": param_dtype,
        **dataclasses.asdict(spec),
    }

    def read(key: str) -> np.ndarray:
        shown = _shown(key, places)
        return finite(np.asarray(to_numpy(tensors[key], *shown), np.float32), *shown)

    def array_of(name: str) -> np.ndarray:
        source = sources[name]
        parts = [source.convert(read(key)) for key in source.keys]
        return np.stack(parts) if source.stacked else parts[0]

    def write(folder: Path) -> None:
        write_arrays(folder / WEIGHTS_FILE, shapes_of(spec), jnp.dtype(param_dtype), array_of)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    write_new_directory(out, write)
    used, known = set(needed), set(needed) | set(training)
    extra = {key: tensors[key].shape for key in set(tensors) - known} | dict.fromkeys(others, (0,))
    report = LoadReport(len(used), len(training), _grouped(extra))
    return SeedCodec.from_pretrained(out), report


def spec_of(
    tensors: Mapping[str, Any], num_heads: tuple[int, int, int], places: Mapping[str, str]
) -> SeedSpec:
    """The sizes that the tensors have. A tower or Q-Former of the published width must have its depth too."""

    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in tensors:
            raise _missing(key, places)
        size = tuple(tensors[key].shape)
        if len(size) != axes or 0 in size:
            place, shown = _shown(key, places)
            raise UserError(
                f"{place}: {shown!r} has the shape {size}; it must have {axes} axes, none of length 0."
            )
        return size

    def depth(stem: str, width: int, published_width: int, published_depth: int) -> int:
        found = {key.removeprefix(stem).split(".")[0] for key in tensors if key.startswith(stem)}
        return published_depth if width == published_width else min(len(found), published_depth)

    _, tokens, vision_dim = shape(f"{VISION}pos_embed", 3)
    patch = shape(f"{VISION}patch_embed.proj.weight", 4)[-1]
    _, queries, dim = shape("query_tokens", 3)
    size, code_dim = shape("quantize.embedding.weight", 2)
    published, down_dims, reverse_layers = PUBLISHED, (), 0
    # Where there are the published head's maps, that is the head, whatever else the file has.
    if "reverse_tokens" in tensors and not any(key.startswith("image_down.") for key in tensors):
        reverse_layers = depth(REVERSE_LAYER, dim, published.qformer_dim, published.qformer_layers)
    else:
        indices = range(0, 2 * len(published.down_dims), 2)
        down_dims = tuple(shape(f"image_down.{index}.weight", 2)[0] for index in indices)
    spec = SeedSpec(
        image_size=patch * round((tokens - 1) ** 0.5),
        patch_size=patch,
        vision_dim=vision_dim,
        vision_layers=depth(f"{VISION}blocks.", vision_dim, published.vision_dim, published.vision_layers),
        vision_heads=num_heads[0],
        vision_hidden=shape(f"{VISION}blocks.0.mlp.fc1.weight", 2)[0],
        num_queries=queries,
        qformer_dim=dim,
        qformer_layers=depth(LAYER, dim, published.qformer_dim, published.qformer_layers),
        qformer_heads=num_heads[1],
        qformer_hidden=shape(f"{LAYER}0.intermediate_query.dense.weight", 2)[0],
        codebook_size=size,
        code_dim=code_dim,
        head_layers=depth("blocks_image.", dim, published.qformer_dim, published.head_layers),
        head_heads=num_heads[2],
        head_hidden=shape("blocks_image.0.mlp.fc1.weight", 2)[0],
        down_dims=down_dims,
        reverse_layers=reverse_layers,
        embed_dim=shape("distill_image_proj.weight", 2)[0],
    )
    for width, count in zip((vision_dim, dim, dim), num_heads, strict=True):
        if width % count:
            raise UserError(f"{places['']}: a transformer of width {width} can't have {count} heads.")
    for count in (spec.qformer_layers, spec.reverse_layers):
        if count % 2:
            raise UserError(f"{places['']}: a Q-Former has an even number of layers, not {count}.")
    return spec


def _read_vit(vit: str | os.PathLike | None, tensors: dict[str, Any], others: list[str]) -> str:
    """Adds the vision tower's tensors to the quantizer's, and what is none to `others`.

    Returns the file to name in messages.
    """
    if vit is None or not Path(vit).exists():
        what = "--vit is not given" if vit is None else f"There is no {os.fspath(vit)}"
        raise UserError(
            f"{what}: SEED's quantizer file comes without the vision tower that turns a picture into "
            "features, so download eva_vit_g.pth (EVA-CLIP ViT-g/14 as LAVIS keeps it for BLIP-2) from "
            f"{VIT_URL} and pass --vit=eva_vit_g.pth."
        )
    vit = Path(vit)
    found, more = (_from_blip2(vit), []) if vit.is_dir() else read_tensors(vit)
    others.extend(VISION + key for key in more)
    tensors.update({VISION + key.removeprefix(VISION): value for key, value in found.items()})
    return os.fspath(vit)


def _from_blip2(folder: Path) -> dict[str, Any]:
    """The vision tower of transformers' Blip2Model or Blip2VisionModel under LAVIS' names."""
    names = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "encoder.layers.": "blocks.",
        ".layer_norm": ".norm",
        ".self_attn.projection.": ".attn.proj.",
        ".self_attn.qkv.": ".attn.qkv.",
    }
    files, tensors = sorted(folder.glob("*.safetensors")), {}
    if not files:
        raise UserError(f"{folder} has no safetensors files; give eva_vit_g.pth or a BLIP-2 directory.")
    arrays = {key: array for file in files for key, array in map_arrays(file).items()}
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in arrays) else ""
    for key, array in arrays.items():
        if not key.startswith((f"{prefix}embeddings.", f"{prefix}encoder.")):
            continue
        key = key.removeprefix(prefix)
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        if key.endswith("attn.qkv.bias"):  # of the keys there is none, hence zeros
            stem = key.removesuffix("qkv.bias")
            tensors[f"{stem}q_bias"], _, tensors[f"{stem}v_bias"] = np.split(array, 3)
        else:
            tensors[key] = array
    return tensors


def _check_shapes(
    tensors: Mapping[str, Any], sources: Mapping[str, Source], places: Mapping[str, str]
) -> None:
    for source in sources.values():
        for key in source.keys:
            if tuple(tensors[key].shape) != source.shape:
                place, shown = _shown(key, places)
                raise UserError(
                    f"{place}: {shown!r} has the shape {tuple(tensors[key].shape)}; the sizes of the other "
                    f"tensors ask for {source.shape}."
                )


def _shown(key: str, places: Mapping[str, str]) -> tuple[str, str]:
    """(file, key as that file spells it)."""
    return (places[VISION], key.removeprefix(VISION)) if key.startswith(VISION) else (places[""], key)


def _missing(key: str, places: Mapping[str, str]) -> UserError:
    place, shown = _shown(key, places)
    return UserError(f"{place}: the key {shown!r} is missing, so this is not the file or not all of it.")


def _grouped(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    counts, sizes = collections.Counter(), collections.Counter()
    for key in sorted(shapes):
        name = re.sub(r"\.\d+(?=\.)", ".*", key)
        counts[name] += 1
        sizes[name] += int(np.prod(tuple(shapes[key])))
    return {name: (counts[name], sizes[name]) for name in counts}
