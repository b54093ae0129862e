"""Random reference models (torch) whose outputs mean something, for parity tests and for committed fixtures.

Fresh models would pass any test: their codebooks are zeros and their latents hardly vary over time. Here the
weights are enlarged, and every codebook holds residuals of some other sound.
"""

import importlib.util

import torch
from audio_signals import sound

SPEECHTOKENIZER = {
    "n_filters": 4,
    "strides": [8, 5, 4, 2],
    "dimension": 32,
    "semantic_dimension": 24,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "lstm_layers": 2,
    "activation": "ELU",
    "codebook_size": 64,
    "n_q": 4,
    "sample_rate": 16000,
    "codebook_dim": 512,  # there in the published config, and ignored by the code
}
ENCODEC_32K = {
    "target_bandwidths": [1.2],
    "sampling_rate": 32000,
    "upsampling_ratios": [8, 5, 4, 4],
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 64,
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}
ENCODEC_24K = {
    "target_bandwidths": [0.9, 1.8, 2.7],
    "sampling_rate": 24000,
    "upsampling_ratios": [8, 5, 4, 2],
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 64,
}
ENCODEC_48K = {  # stereo, in chunks of 0.02 s here
    "target_bandwidths": [18.0, 36.0],
    "sampling_rate": 48000,
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 0.02,
    "overlap": 0.1,
    "upsampling_ratios": [8, 4],
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 64,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
}


def have_speechtokenizer() -> bool:
    """Whether the package is there: `pip install --no-deps speechtokenizer==0.1.2`, and einops."""
    return all(importlib.util.find_spec(name) for name in ("speechtokenizer", "einops"))


def random_speechtokenizer(half: bool = False, **changes) -> torch.nn.Module:
    """The package's own model, with `SPEECHTOKENIZER` as its config but for `changes`.

    `half`: weights that are numbers of float16, so that they can be stored as such.
    """
    from speechtokenizer import SpeechTokenizer

    torch.manual_seed(0)
    config = {**SPEECHTOKENIZER, **changes}
    model = SpeechTokenizer(config).eval()
    _enliven(model, gain=1.5 if config["activation"] == "Snake" else 2.5)
    return _filled(
        model, [layer._codebook for layer in model.quantizer.vq.layers], config["sample_rate"], half
    )


def random_encodec(half: bool = False, **config) -> torch.nn.Module:
    """transformers' EncodecModel; `half` as above."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    config = EncodecConfig(**config)
    model = EncodecModel(config).eval()
    _enliven(model)
    return _filled(model, [layer.codebook for layer in model.quantizer.layers], config.sampling_rate, half)


def _enliven(model: torch.nn.Module, gain: float = 2.5) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("weight_g", "original0")):
                value.mul_(gain)
            elif name.endswith("norm.weight"):
                value.uniform_(0.5, 2.0)
            elif ".lstm.weight" in name:
                value.mul_(3.0)
            elif name.endswith("alpha"):
                value.uniform_(0.2, 2.0)
            elif "bias" in name:
                value.normal_(0.0, 0.1)


@torch.no_grad()
def _filled(model: torch.nn.Module, books: list, rate: int, half: bool) -> torch.nn.Module:
    """Codebooks of residuals of those before them, and jitter; an output as loud as sound is."""
    frames = max(100, int(1.5 * len(books[0].embed)))
    channels = getattr(getattr(model, "config", None), "audio_channels", 1)
    wave = sound(channels, 640 * frames, rate, seed=7).swapaxes(0, 1)
    if getattr(getattr(model, "config", None), "normalize", False):
        wave /= wave.std()
    latents = model.encoder(torch.as_tensor(wave))
    residual = latents[0].T
    for book in books:
        chosen = residual[torch.randperm(len(residual))[: len(book.embed)]]
        book.embed.copy_(chosen + 0.1 * residual.std() * torch.randn_like(chosen))
        book.inited.fill_(1.0)
        residual = residual - book.embed[torch.cdist(residual, book.embed).argmin(-1)]
    loudness = model.decoder(latents - residual.T[None]).std()
    *_, last = (part for part in model.decoder.modules() if isinstance(part, torch.nn.Conv1d))
    gain = dict(last.named_parameters())
    norms = [part for part in model.decoder.modules() if isinstance(part, torch.nn.GroupNorm)]
    if norms:
        gain = {"bias": norms[-1].bias, "weight_g": norms[-1].weight}
    for name in ("bias", "weight_g", "parametrizations.weight.original0"):
        if name in gain:
            gain[name].div_(5 * loudness)
    if half:
        for value in model.state_dict().values():
            value.copy_(value.half())
    return model
