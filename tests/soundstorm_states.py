"""Random SoundStorm checkpoints with AnyGPT's keys."""

import numpy as np


def random_state(
    dim: int = 32, depth: int = 2, heads_width: int = 32, levels: int = 7, codes: int = 20, semantic: int = 16
) -> dict[str, np.ndarray]:
    """The keys and shapes of the published file, at a small size."""
    rng = np.random.default_rng(0)
    inner, state = 2 * dim, {}

    def linear(name: str, out: int, inside: int, *kernel: int, bias: bool = True, gain: float = 1.5) -> None:
        shape = (out, inside, *kernel)
        state[f"{name}.weight"] = rng.normal(size=shape) * gain / np.sqrt(np.prod(shape[1:]))
        if bias:
            state[f"{name}.bias"] = rng.normal(size=out) * 0.1

    def norm(name: str) -> None:
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, dim)
        state[f"{name}.bias"] = rng.normal(size=dim) * 0.1

    for layer in range(depth):
        stem = f"net.conformer.layers.{layer}."
        for name in ("ff1", "ff2"):
            linear(f"{stem}{name}.fn.fn.net.0", 4 * dim, dim)
            linear(f"{stem}{name}.fn.fn.net.3", dim, 4 * dim)
            norm(f"{stem}{name}.fn.norm")
        linear(f"{stem}attn.fn.to_q", heads_width, dim, bias=False)
        linear(f"{stem}attn.fn.to_kv", 2 * heads_width, dim, bias=False)
        linear(f"{stem}attn.fn.to_out", dim, heads_width)
        norm(f"{stem}attn.norm")
        norm(f"{stem}conv.net1.0")
        linear(f"{stem}conv.net1.2", 2 * inner, dim, 1)
        linear(f"{stem}conv.ds_conv.conv", inner, 1, 31)
        state[f"{stem}conv.net2.1.gamma"] = rng.uniform(0.5, 1.5, (1, inner, 1))
        linear(f"{stem}conv.net2.2", dim, inner, 1)
        norm(f"{stem}post_norm")
    state["net.code_embeds.weight"] = rng.normal(size=((codes + 1) * levels, dim))
    state["semantic_token_emb.weight"] = rng.normal(size=(semantic, dim))
    linear("net.heads.0", levels * dim, dim)
    norm("net.to_logits.0")
    state["net.to_logits.2.weight"] = rng.normal(size=(levels, dim, codes)) * 2 / np.sqrt(dim)
    state["net.to_logits.2.bias"] = rng.normal(size=(1, 1, levels, codes)) * 0.1
    return {name: np.asarray(value, np.float32) for name, value in state.items()}
