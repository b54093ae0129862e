"""The perceptual distance against LPIPS written in PyTorch, on random weights (extra `parity`)."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.perceptual import perceptual_distance, read_features

pytestmark = pytest.mark.parity

# VGG-16's features: widths of convolutions, each with a ReLU behind it, and "M" for a pooling.
LAYERS = (4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8)
TAPS = (3, 8, 15, 22, 29)  # after the ReLU of each stage's last convolution


def reference(torch):
    """(the features as torchvision builds them, LPIPS' five weights)."""
    torch.manual_seed(0)
    layers, width = [], 3
    for layer in LAYERS:
        if layer == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(width, layer, 3, padding=1), torch.nn.ReLU()]
            width = layer
    return torch.nn.Sequential(*layers), [torch.rand(1, count, 1, 1) for count in (4, 6, 8, 8, 8)]


def lpips(torch, features, lins, a, b):
    """The distance [B] of pictures [B, 3, S, S] from -1 to 1, as Zhang et al. define it."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = (a - shift) / scale, (b - shift) / scale
    total = 0
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in TAPS:
            one, other = (z / (z.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y))
            weights = lins[TAPS.index(index)]
            total = total + ((one - other).pow(2) * weights).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("names", ["torchvision", "lpips"])
def test_the_distance_is_lpips(names, tmp_path):
    torch = pytest.importorskip("torch")
    features, lins = reference(torch)
    stages = (0, 5, 10, 17, 24)
    arrays = {f"lin{i}.model.1.weight": lin.numpy() for i, lin in enumerate(lins)}
    for name, tensor in features.state_dict().items():
        number = int(name.split(".")[0])
        stage = sum(number >= first for first in stages)
        arrays[f"{'features' if names == 'torchvision' else f'net.slice{stage}'}.{name}"] = tensor.numpy()
    arrays["classifier.0.weight"] = np.zeros((3, 3), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "vgg.safetensors")
    a, b = np.random.default_rng(0).random((2, 3, 32, 32, 3), np.float32)
    with torch.no_grad():
        wanted = lpips(torch, features, lins, *(torch.tensor(2 * x - 1).permute(0, 3, 1, 2) for x in (a, b)))
    found = jax.jit(perceptual_distance)(read_features(tmp_path / "vgg.safetensors"), a, b)
    np.testing.assert_allclose(found, wanted.mean(), rtol=1e-5)
