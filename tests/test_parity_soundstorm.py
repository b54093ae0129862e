"""SoundStorm's network against soundstorm-pytorch 0.3.1 on random weights (extra `parity`).

The package is compared with where it is installed (einops, beartype==0.16.4, and
`pip install --no-deps soundstorm-pytorch==0.3.1`); what it imports for other purposes is replaced by empty
modules.
"""

import importlib.util
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from soundstorm_states import random_state

pytestmark = pytest.mark.parity


def original_network(monkeypatch, state: dict):
    """The package's ConformerWrapper with the arrays of `state`."""
    torch = pytest.importorskip("torch")
    if not all(importlib.util.find_spec(name) for name in ("soundstorm_pytorch", "beartype", "einops")):
        pytest.skip("the package soundstorm-pytorch isn't installed")
    for module, names in [
        ("spear_tts_pytorch", ["TextToSemantic"]),
        ("audiolm_pytorch", ["SoundStream", "HubertWithKmeans", "FairseqVQWav2Vec"]),
        ("soundstorm_pytorch.trainer", ["SoundStormTrainer"]),
    ]:
        empty = types.ModuleType(module)
        for name in names:
            setattr(empty, name, type(name, (torch.nn.Module,), {}))
        monkeypatch.setitem(sys.modules, module, empty)
    from soundstorm_pytorch import ConformerWrapper

    net = ConformerWrapper(
        codebook_size=20,
        num_quantizers=7,
        conformer={"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "attn_flash": False},
    )
    named = {key.removeprefix("net."): torch.as_tensor(v) for key, v in state.items() if key[:4] == "net."}
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    net.load_state_dict({key: value.reshape(shapes[key]) for key, value in named.items()})
    return net.eval()


def test_the_network_is_the_packages(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    state = random_state()
    net = original_network(monkeypatch, state)
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    model = import_soundstorm(tmp_path / "model.safetensors", tmp_path / "out", heads=2)
    rng = np.random.default_rng(0)
    for size in (1, 7, 40):
        codes, semantic = rng.integers(0, 21, (2, size, 7)), rng.integers(0, 16, (2, size))
        with torch.no_grad():
            embedded = torch.as_tensor(state["semantic_token_emb.weight"])[torch.as_tensor(semantic)]
            expected = net(torch.as_tensor(codes.reshape(2, -1)), sum_embeds=embedded).numpy()
        valid = jnp.ones(semantic.shape, bool)
        logits = model.net.apply({"params": model.params}, codes, semantic, valid)
        assert expected.std() > 0.5
        difference = np.asarray(logits).reshape(expected.shape) - expected
        # In units of the logits' own size: single entries of torch differ from float64 by 4e-6 of it.
        assert np.sqrt(np.mean(difference**2)) <= 2e-6 * expected.std()
        assert np.abs(difference).max() <= 5e-6 * expected.std()
