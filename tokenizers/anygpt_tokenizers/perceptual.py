"""A distance of pictures between the layers of a trained VGG-16, as LPIPS has it (Zhang et al. 2018).

The weights come from the user: a safetensors file with the thirteen convolutions under torchvision's names
for VGG-16, features.0.weight and .bias [out, in, 3, 3] to features.28, or under those of the `lpips` package
(net.slice1.0.weight … net.slice5.28.bias). With LPIPS' own weights beside them (lin0.model.1.weight to lin4,
[1, channels, 1, 1]) the distance is LPIPS, without them every channel counts the same. Other tensors are
ignored. Such a file is made of either package's model by

    safetensors.torch.save_file(dict(torchvision.models.vgg16(weights="DEFAULT").state_dict()), FILE)
    safetensors.torch.save_file({k: v.contiguous() for k, v in lpips.LPIPS(net="vgg").state_dict().items()
                                 if not k.startswith("lins.")}, FILE)

Widths may be smaller than VGG's. MaskGIT's authors used a ResNet's features, which they did not publish.
"""

import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import SafetensorsFile

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's numbers of convolutions
MEAN, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS', of pixels from -1 to 1
LAYER = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
CHANNELS = re.compile(r"lin(\d)\.model\.1\.weight")


def read_features(path: str | os.PathLike) -> dict:
    """The weights {"stages": [[(kernel HWIO, bias), …], …], "channels": [[C], …]} of a file, float32.

    UserError: the file can't be read, or lacks a tensor that it names, or has one of a wrong shape.
    """
    file = SafetensorsFile(path)
    found = {}
    for name in file.shapes:
        layer, channels = LAYER.fullmatch(name), CHANNELS.fullmatch(name)
        if layer:
            found[int(layer[1]), layer[2]] = name
        elif channels:
            found["channels", int(channels[1])] = name

    def read(key: tuple, told: str, wanted: tuple) -> np.ndarray:
        if key not in found:
            raise UserError(
                f"{os.fspath(path)} has no {told}, so it is no VGG-16; see the docstring of "
                "anygpt_tokenizers.perceptual for how to write one."
            )
        shape = file.shapes[found[key]]
        if len(shape) != len(wanted) or any(
            want not in (None, size) for size, want in zip(shape, wanted, strict=True)
        ):
            raise UserError(
                f"{os.fspath(path)}: {found[key]} has the shape {list(shape)}; expected is "
                f"{['any' if want is None else want for want in wanted]}."
            )
        return np.asarray(file.read(found[key]), np.float32)

    stages, width = [], 3
    for numbers in STAGES:
        stage = []
        for number in numbers:
            kernel = read((number, "weight"), f"features.{number}.weight", (None, width, 3, 3))
            width = len(kernel)
            stage.append((kernel.transpose(2, 3, 1, 0), read((number, "bias"), "bias", (width,))))
        stages.append(stage)
    widths = [stage[-1][1].size for stage in stages]
    if ("channels", 0) in found:
        channels = [
            read(("channels", i), f"lin{i}.model.1.weight", (1, width, 1, 1)).reshape(-1)
            for i, width in enumerate(widths)
        ]
    else:
        channels = [np.full(width, 1 / width, np.float32) for width in widths]
    return jax.tree.map(jnp.asarray, {"stages": stages, "channels": channels})


def perceptual_distance(features: dict, a: jax.Array, b: jax.Array) -> jax.Array:
    """The mean distance of pictures a and b, float32 [B, S, S, 3] from 0 to 1, S at least 16.

    Of each stage's activations, divided by their lengths over the channels, the squared differences, weighted
    over channels and averaged over places; summed over the stages.
    """
    x = (2 * jnp.concatenate([a, b]) - 1 - jnp.array(MEAN)) / jnp.array(SCALE)
    total = 0.0
    for index, (stage, weights) in enumerate(zip(features["stages"], features["channels"], strict=True)):
        if index:
            x = nn.max_pool(x, (2, 2), (2, 2))
        for kernel, bias in stage:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + bias)
        lengths = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-20)
        one, other = jnp.split(x / (lengths + 1e-10), 2)
        total += jnp.mean(jnp.sum(weights * (one - other) ** 2, axis=-1))
    return total
