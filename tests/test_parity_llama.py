"""The decoder against Hugging Face's LLaMA on random weights (extra `parity`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import Decoder, init_cache, init_params

pytestmark = pytest.mark.parity

ROWS, DIM, LAYERS, HEADS, HEAD_DIM, HIDDEN = 160, 64, 2, 4, 16, 96


def reference_model(num_kv_heads: int):
    """A random two-layer LlamaForCausalLM in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=ROWS,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=num_kv_heads,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config).eval()


def translated(model, num_kv_heads: int, padded_rows: int) -> dict:
    """The reference's weights as our parameter tree, vocabulary tables padded with zeros."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}

    def stack(name: str, *shape: int) -> np.ndarray:
        layers = [state[f"model.layers.{i}.{name}.weight"] for i in range(LAYERS)]
        return np.stack([weight.T.reshape(shape) for weight in layers])

    def norm(name: str) -> dict:
        return {"scale": np.stack([state[f"model.layers.{i}.{name}.weight"] for i in range(LAYERS)])}

    def padded(table: np.ndarray) -> np.ndarray:
        return np.pad(table, ((0, padded_rows - ROWS), (0, 0)))

    return {
        "embedding": padded(state["model.embed_tokens.weight"]),
        "unembedding": padded(state["lm_head.weight"]).T,
        "final_norm": {"scale": state["model.norm.weight"]},
        "layers": {
            "attention_norm": norm("input_layernorm"),
            "mlp_norm": norm("post_attention_layernorm"),
            "attention": {
                "query": {"kernel": stack("self_attn.q_proj", DIM, HEADS, HEAD_DIM)},
                "key": {"kernel": stack("self_attn.k_proj", DIM, num_kv_heads, HEAD_DIM)},
                "value": {"kernel": stack("self_attn.v_proj", DIM, num_kv_heads, HEAD_DIM)},
                "output": {"kernel": stack("self_attn.o_proj", HEADS, HEAD_DIM, DIM)},
            },
            "mlp": {
                "gate": {"kernel": stack("mlp.gate_proj", DIM, HIDDEN)},
                "up": {"kernel": stack("mlp.up_proj", DIM, HIDDEN)},
                "down": {"kernel": stack("mlp.down_proj", HIDDEN, DIM)},
            },
        },
    }


def ours(num_kv_heads: int, padded_rows: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=padded_rows,
        num_real_rows=ROWS,
        embed_dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=num_kv_heads,
        head_dim=HEAD_DIM,
        hidden_dim=HIDDEN,
    )


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_logits_and_greedy_continuations_equal_the_reference(num_kv_heads):
    torch = pytest.importorskip("torch")
    model = reference_model(num_kv_heads)
    config = ours(num_kv_heads, padded_rows=256)
    decoder, params = Decoder(config), translated(model, num_kv_heads, 256)
    fresh = jax.eval_shape(lambda: init_params(config, 0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    prompts = np.random.default_rng(1).integers(0, ROWS, (20, 24))

    hidden, _ = decoder.apply({"params": params}, jnp.asarray(prompts))
    logits = decoder.apply({"params": params}, hidden, method="logits")
    with torch.no_grad():
        expected = model(torch.as_tensor(prompts)).logits.numpy()
    np.testing.assert_allclose(logits[..., :ROWS], expected, atol=1e-4, rtol=0)
    assert (np.asarray(logits[..., ROWS:]) < -1e29).all()

    with torch.no_grad():
        everything = torch.ones(prompts.shape, dtype=torch.long)  # else id 0 in a prompt counts as padding
        continued = model.generate(
            torch.as_tensor(prompts),
            attention_mask=everything,
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        ).numpy()
    np.testing.assert_array_equal(greedy(decoder, params, prompts, 64), continued[:, prompts.shape[1] :])


def greedy(decoder: Decoder, params: dict, prompts: np.ndarray, count: int) -> np.ndarray:
    """`count` greedy tokens after each prompt, through the cache: int [B, count]."""

    @jax.jit
    def run(tokens):
        cache = init_cache(decoder.config, prompts.shape[0], prompts.shape[1] + count)
        hidden, cache = decoder.apply({"params": params}, tokens, cache=cache)
        first = decoder.apply({"params": params}, hidden[:, -1], method="logits").argmax(-1)

        def step(carry, _):
            token, cache = carry
            hidden, cache = decoder.apply({"params": params}, token[:, None], cache=cache)
            following = decoder.apply({"params": params}, hidden[:, -1], method="logits").argmax(-1)
            return (following, cache), token

        _, tokens = jax.lax.scan(step, (first, cache), length=count)
        return tokens.T

    return np.asarray(run(jnp.asarray(prompts)))
