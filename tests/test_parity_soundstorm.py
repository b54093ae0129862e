"""SoundStorm's network against soundstorm-pytorch 0.3.1 on random weights (extra `parity`).

The package is compared with where it is installed (einops, beartype==0.16.4, and
`pip install --no-deps soundstorm-pytorch==0.3.1`).
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.soundstorm import kept_unknown
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from soundstorm_states import random_state

pytestmark = pytest.mark.parity


needs_the_package = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "soundstorm_pytorch", "beartype", "einops")),
    reason="the package soundstorm-pytorch isn't installed",
)


def both_logits(state: dict, directory: Path, frames: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Logits [2, frames, 7, 20] of the imported network and of the package's, computed in `dtype`."""
    from soundstorm_oracle import logits_of, original_network

    safetensors.numpy.save_file(state, directory / "model.safetensors")
    model = import_soundstorm(directory / "model.safetensors", directory / np.dtype(dtype).name, heads=2)
    rng = np.random.default_rng(0)
    codes, semantic = rng.integers(0, 21, (2, frames, 7)), rng.integers(0, 16, (2, frames))
    with jax.enable_x64(dtype == np.float64):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), model.params)
        logits = model.net.apply({"params": params}, codes, semantic, jnp.ones(semantic.shape, bool))
    net = original_network(state, heads=2)
    expected = logits_of(net.double() if dtype == np.float64 else net, state, codes, semantic)
    assert logits.dtype == expected.dtype == dtype
    assert expected.std() > 0.5
    return np.asarray(logits), expected


@needs_the_package
@pytest.mark.parametrize("frames", [1, 7, 40])
def test_the_packages_own_start_gives_logits_equal_to_2e_6(tmp_path, frames):
    from soundstorm_oracle import as_initialised

    logits, expected = both_logits(as_initialised(random_state(), heads=2), tmp_path, frames, np.float32)
    assert np.abs(logits - expected).max() <= 2e-6


@needs_the_package
@pytest.mark.parametrize("frames", [1, 7, 40])
def test_random_norms_and_biases_give_logits_equal_to_2e_6(tmp_path, frames):
    logits, expected = both_logits(random_state(), tmp_path, frames, np.float64)
    assert np.abs(logits - expected).max() <= 2e-6
    # These logits go up to 8, where a single one that torch computes in float32 errs by up to 1e-5.
    logits, expected = both_logits(random_state(), tmp_path, frames, np.float32)
    assert np.sqrt(np.mean((logits - expected) ** 2)) <= 2e-6


def test_as_many_entries_stay_unknown_as_in_torch():
    torch = pytest.importorskip("torch")
    totals = torch.arange(1, 1600)
    for steps in range(1, 33):
        share = torch.cos(torch.linspace(0.0, 1.0, steps + 1) * torch.pi / 2)
        ours = [kept_unknown(steps, total) for total in totals.tolist()]
        np.testing.assert_array_equal(ours, (totals[:, None] * share).long())
