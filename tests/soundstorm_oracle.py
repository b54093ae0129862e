"""The network of soundstorm-pytorch 0.3.1, the package that AnyGPT's SoundStorm was copied from.

What the package imports for other purposes is replaced by empty classes while it is imported.
"""

import sys
from types import ModuleType
from unittest import mock

import numpy as np
import torch

UNUSED = {
    "spear_tts_pytorch": ["TextToSemantic"],
    "audiolm_pytorch": ["SoundStream", "HubertWithKmeans", "FairseqVQWav2Vec"],
    "soundstorm_pytorch.trainer": ["SoundStormTrainer"],
}


def original_network(state: dict[str, np.ndarray], heads: int) -> torch.nn.Module:
    """The package's ConformerWrapper with the arrays of `state`, which must be all of its own."""
    net = initialised_network(state, heads)
    named = {key.removeprefix("net."): torch.as_tensor(v) for key, v in state.items() if key[:4] == "net."}
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    net.load_state_dict({key: value.reshape(shapes[key]) for key, value in named.items()})
    return net


def as_initialised(state: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """`state` with the values that the package itself starts a network of its sizes from."""
    torch.manual_seed(0)
    start = initialised_network(state, heads).state_dict()
    of_net = {key: start[key[4:]].numpy().reshape(v.shape) for key, v in state.items() if key[:4] == "net."}
    return state | of_net


def initialised_network(state: dict[str, np.ndarray], heads: int) -> torch.nn.Module:
    """The package's ConformerWrapper of the sizes of `state`, with the values that the package gives it."""
    empty = {name: ModuleType(name) for name in UNUSED}
    for name, classes in UNUSED.items():
        for each in classes:
            setattr(empty[name], each, type(each, (torch.nn.Module,), {}))
    with mock.patch.dict(sys.modules, empty):
        from soundstorm_pytorch import ConformerWrapper

    levels, dim, codes = state["net.to_logits.2.weight"].shape
    width = len(state["net.conformer.layers.0.attn.fn.to_q.weight"])
    depth = len({key.split(".")[3] for key in state if key.startswith("net.conformer.layers.")})
    net = ConformerWrapper(
        codebook_size=codes,
        num_quantizers=levels,
        conformer={
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "dim_head": width // heads,
            "attn_flash": False,
        },
    )
    return net.eval()


def logits_of(net: torch.nn.Module, state: dict, codes: np.ndarray, semantic: np.ndarray) -> np.ndarray:
    """Logits [B, N, levels, codes] of codes [B, N, levels] and semantic codes [B, N], as precise as `net`."""
    with torch.no_grad():
        embedded = torch.as_tensor(state["semantic_token_emb.weight"])[torch.as_tensor(semantic)]
        embedded = embedded.to(next(net.parameters()).dtype)
        logits = net(torch.as_tensor(codes.reshape(len(codes), -1)), sum_embeds=embedded).numpy()
    return logits.reshape(*codes.shape, -1)
