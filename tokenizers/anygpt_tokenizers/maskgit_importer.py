"""MaskGIT's published tokenizer checkpoints -> a directory that `load_codec` reads.

tokenizer_imagenet256_checkpoint and tokenizer_imagenet512_checkpoint (Chang et al. 2022, at
storage.googleapis.com/maskgit-public/checkpoints) are Flax' msgpack of a tree {"params": {"encoder": …,
"decoder": …, "quantizer": {"codebook": …}}} with the names that `maskgit_net` gives its parameters. Sizes are
read off the arrays. Nothing in such a file can run code.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from anygpt_tokenizers.checkpoint_files import finite, write_new_directory
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.vqgan import VqganCodec, VqganNet, cell_size, completed

PARTS = ("encoder", "decoder", "quantizer")
GROUPS = 32  # of the norms; the arrays don't show it
URL = "https://storage.googleapis.com/maskgit-public/checkpoints/tokenizer_imagenet256_checkpoint"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the file's arrays.

    used: how many. ignored: how many outside the tokenizer's three parts, by the start of their names.
    """

    used: int
    ignored: dict[str, int]

    def __str__(self) -> str:
        rest = "".join(f"\n  {count:4d} × {name}" for name, count in self.ignored.items())
        return f"{self.used} arrays used, {sum(self.ignored.values())} that are no tokenizer's ignored{rest}"


def import_maskgit(
    src: str | os.PathLike, out: str | os.PathLike, image_size: int = 256
) -> tuple[VqganCodec, LoadReport]:
    """Writes a checkpoint as a codec for pictures to the new directory `out`; returns it, and what was read.

    Args:
      src: the msgpack file.
      out: must not exist yet, or be empty.
      image_size: of the pictures, which the file doesn't tell; 512 for the checkpoint of that name.

    UserError names an array that is missing, unknown within a part, or of the wrong shape; or the file is no
    such checkpoint, or not all of it.
    """
    tree = _read(src)
    if not isinstance(tree, dict) or not isinstance(tree.get("params"), dict):
        raise UserError(f"{os.fspath(src)} has no 'params', so it is no tokenizer; get it from {URL}.")
    found, ignored = {}, collections.Counter()
    for path, value in traverse_util.flatten_dict(tree).items():
        if path[0] == "params" and path[1] in PARTS:
            found["/".join(map(str, path[1:]))] = value
        else:
            ignored["/".join(map(str, path[:2]))] += 1
    config = completed(
        {
            "modality": "image",
            "num_codebooks": 1,
            "image_size": image_size,
            "net": "maskgit",
            "output": "pixels",
            "storage_dtype": "float32",
            **_sizes(src, found),
        }
    )
    _check(src, found, config)
    codec = VqganCodec(config, traverse_util.unflatten_dict(found, sep="/"))
    write_new_directory(Path(out), codec.save_pretrained)
    return VqganCodec.from_pretrained(out), LoadReport(len(found), dict(ignored))


def _read(src: str | os.PathLike) -> Any:
    """The file's tree; UserError if it is none."""
    try:
        data = Path(src).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(src)} cannot be read: {error.strerror}.") from error
    try:
        return serialization.msgpack_restore(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{os.fspath(src)} ({len(data)} bytes) is no Flax checkpoint, or not all of one; get it again, "
            f"such as from {URL}."
        ) from error


def _sizes(src: str | os.PathLike, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `VqganNet`'s configuration says of the sizes that the arrays have."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in found:
            raise _missing(src, name)
        size = np.shape(found[name])
        if len(size) != axes or 0 in size:
            raise UserError(f"{os.fspath(src)}: {name!r} has the shape {size}; it must have {axes} axes.")
        return size

    def count(part: str, layer: str) -> int:
        numbers = [re.match(rf"{part}/{layer}_(\d+)/", name) for name in found]
        return len({number[1] for number in numbers if number})

    filters = shape("encoder/Conv_0/kernel", 4)[-1]
    codes, dim = shape("quantizer/codebook", 2)
    levels, blocks = count("decoder", "Conv") - 1, count("encoder", "ResBlock")
    if levels < 1 or blocks % (levels + 1):
        raise UserError(
            f"{os.fspath(src)}: {blocks} encoder/ResBlock_… and {levels + 1} decoder/Conv_… make no "
            "tokenizer of MaskGIT; one of them is missing."
        )
    res_blocks = blocks // (levels + 1)
    widths = [shape(f"encoder/ResBlock_{i * res_blocks}/Conv_0/kernel", 4)[-1] for i in range(levels)]
    return {
        "codebook_size": codes,
        "quantizer": {"kind": "plain", "dim": dim, "levels": ()},
        "filters": filters,
        "multipliers": [width // filters for width in widths],
        "res_blocks": res_blocks,
        "groups": GROUPS,
    }


def _check(src: str | os.PathLike, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """UserError unless the arrays are exactly those of the net, each of its shape, all of finite numbers."""
    size = 2 * cell_size(config)
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    wanted = jax.eval_shape(VqganNet(config).init, jax.random.key(0), pixels)["params"]
    wanted = traverse_util.flatten_dict(wanted, sep="/")
    for name, leaf in wanted.items():
        if name not in found:
            raise _missing(src, name)
        if np.shape(found[name]) != leaf.shape:
            raise UserError(
                f"{os.fspath(src)}: {name!r} has the shape {np.shape(found[name])}; the sizes of the other "
                f"arrays ask for {leaf.shape}."
            )
        finite(np.asarray(found[name], np.float32), src, name)
    unknown = sorted(set(found) - set(wanted))
    if unknown:
        raise UserError(
            f"{os.fspath(src)}: {unknown[0]!r} is no array of MaskGIT's tokenizer, nor are "
            f"{len(unknown) - 1} others in its parts."
        )


def _missing(src: str | os.PathLike, name: str) -> UserError:
    return UserError(f"{os.fspath(src)}: the array {name!r} is missing, so this is not all of the file.")
