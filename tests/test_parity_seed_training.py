"""SEED's first stage against BLIP-2's own text path and torch's loss, random weights (extra `parity`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers.seed_qformer import CausalQFormer
from anygpt_tokenizers.seed_stage1 import contrastive_loss
from anygpt_tokenizers.seed_text import PAD, Captions, TextReader, own_params, with_shared
from flax import traverse_util

pytestmark = pytest.mark.parity
DIM, LAYERS, HEADS, HIDDEN = 16, 4, 2, 32
FLOAT32 = jnp.dtype("float32")
# Our names in a layer -> transformers'.
NAMES = {
    **{f"self_{part}": f"attention.attention.{part}" for part in ("query", "key", "value")},
    "self_out": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def randomised(params: dict, seed: int) -> dict:
    """The same tree with every array random and large enough to matter, biases and norms included."""
    rng, flat = np.random.default_rng(seed), traverse_util.flatten_dict(params)
    for path, array in flat.items():
        spread = 1.5 * array.shape[-2] ** -0.5 if path[-1] == "kernel" else 0.3
        flat[path] = rng.normal(path[-1] == "scale", spread, array.shape).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


def test_text_is_read_as_blip_2_reads_it():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens = Captions(12)(["a disc", "a large red circle", ""])
    reader = TextReader(258, DIM, LAYERS, HEADS, HIDDEN, FLOAT32)
    qformer = CausalQFormer(32, DIM, LAYERS, HEADS, HIDDEN, FLOAT32)
    text = randomised(jax.jit(reader.init)(jax.random.key(0), tokens)["params"], 0)
    shared = randomised(jax.jit(qformer.init)(jax.random.key(0), jnp.zeros((1, 5, 8)))["params"], 1)
    params = with_shared(own_params(text), shared)
    ours = jax.jit(reader.apply)({"params": params}, tokens)

    config = transformers.Blip2QFormerConfig(
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        encoder_hidden_size=8,
        cross_attention_frequency=2,
        use_qformer_text_input=True,
        layer_norm_eps=1e-12,
    )
    model = transformers.Blip2QFormerModel(config).eval()
    state = model.state_dict()
    norm = params["queries_norm"]
    state |= {"layernorm.weight": torch.tensor(norm["scale"]), "layernorm.bias": torch.tensor(norm["bias"])}
    for odd, kind in enumerate(("cross", "plain")):
        for name, theirs in NAMES.items():
            for leaf, arrays in params["pairs"][kind][name].items():
                suffix = "bias" if leaf == "bias" else "weight"
                for pair, array in enumerate(arrays):
                    key = f"encoder.layer.{2 * pair + odd}.{theirs}.{suffix}"
                    assert key in state
                    state[key] = torch.tensor(array.T)
    model.load_state_dict(state)
    embedded = torch.tensor(params["tokens"][tokens] + params["places"])
    mask = torch.tensor(tokens != PAD).float()
    with torch.no_grad():
        expected = model(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state[:, 0]
    expected = expected.numpy()
    assert np.abs(expected - expected.mean(0)).mean() > 0.05, "the same for every text"
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_the_contrastive_loss_is_torchs():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).normal(0, 3, (8, 8)).astype(np.float32)
    entropy = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    target = torch.arange(8)
    expected = sum(entropy(torch.tensor(rows), target) for rows in (scores, scores.T.copy())) / 2
    actual = contrastive_loss(jnp.asarray(scores), jnp.eye(8, dtype=bool), 0.1)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6)
