"""SoundStorm's network against soundstorm-pytorch 0.3.1 on random weights (extra `parity`).

The package is compared with where it is installed (einops, beartype==0.16.4, and
`pip install --no-deps soundstorm-pytorch==0.3.1`).
"""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.soundstorm import kept_unknown
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from soundstorm_states import random_state

pytestmark = pytest.mark.parity


def test_the_network_is_the_packages(tmp_path):
    pytest.importorskip("torch")
    if not all(importlib.util.find_spec(name) for name in ("soundstorm_pytorch", "beartype", "einops")):
        pytest.skip("the package soundstorm-pytorch isn't installed")
    from soundstorm_oracle import logits_of, original_network

    state = random_state()
    net = original_network(state, heads=2)
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    model = import_soundstorm(tmp_path / "model.safetensors", tmp_path / "out", heads=2)
    rng = np.random.default_rng(0)
    for size in (1, 7, 40):
        codes, semantic = rng.integers(0, 21, (2, size, 7)), rng.integers(0, 16, (2, size))
        expected = logits_of(net, state, codes, semantic)
        valid = jnp.ones(semantic.shape, bool)
        logits = model.net.apply({"params": model.params}, codes, semantic, valid)
        assert expected.std() > 0.5
        difference = np.asarray(logits) - expected
        # In units of the logits' own size: single entries of torch differ from float64 by 4e-6 of it.
        assert np.sqrt(np.mean(difference**2)) <= 2e-6 * expected.std()
        assert np.abs(difference).max() <= 5e-6 * expected.std()
        assert np.abs(difference).max() <= 2e-6 * np.abs(expected).max()


def test_as_many_entries_stay_unknown_as_in_torch():
    torch = pytest.importorskip("torch")
    totals = torch.arange(1, 1600)
    for steps in range(1, 33):
        share = torch.cos(torch.linspace(0.0, 1.0, steps + 1) * torch.pi / 2)
        ours = [kept_unknown(steps, total) for total in totals.tolist()]
        np.testing.assert_array_equal(ours, (totals[:, None] * share).long())
