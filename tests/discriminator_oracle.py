"""SpeechTokenizer's own discriminators (package 1.0.1), beside 0.1.2 that the codecs are compared with.

`pip install --no-deps --target=DIR speechtokenizer==1.0.1` makes the folder; `bash launch/test.sh --parity`
does it in "originals" of the environment. The package's trainer and torchaudio aren't needed: the modules are
loaded under another name without the package's own start, and torchaudio is replaced, for as long as that
takes, by its spectrogram in terms of torch.stft.
"""

import importlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch

ALIAS = "speechtokenizer_1_0_1"
FOLDER = Path(os.environ.get("ANYGPT_ORIGINALS", Path(sys.prefix) / "originals"))


class Spectrogram(torch.nn.Module):
    """torchaudio's, as the discriminators call it: complex, not centred, divided by the window's norm."""

    def __init__(self, n_fft, hop_length, win_length, window_fn, **_):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop_length
        self.register_buffer("window", window_fn(win_length))

    def forward(self, x):
        spectrum = torch.stft(
            x[:, 0], self.n_fft, self.hop, window=self.window, center=False, return_complex=True
        )
        return (spectrum / self.window.square().sum().sqrt())[:, None]


def have_originals(folder: Path = FOLDER) -> bool:
    """Whether the package is in `folder`."""
    return (folder / "speechtokenizer" / "discriminators.py").is_file()


def originals(folder: Path = FOLDER) -> types.ModuleType:
    """The module `speechtokenizer.discriminators` of the package installed in `folder`."""
    package = types.ModuleType(ALIAS)
    package.__path__ = [str(folder / "speechtokenizer")]
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    torchaudio.transforms = types.SimpleNamespace(Spectrogram=Spectrogram)
    before = sys.modules.get("torchaudio")
    sys.modules.update({ALIAS: package, "torchaudio": torchaudio})
    try:
        return importlib.import_module(f"{ALIAS}.discriminators")
    finally:
        del sys.modules["torchaudio"]
        if before is not None:
            sys.modules["torchaudio"] = before


def state_of(params: dict, spectral: dict) -> dict[str, np.ndarray]:
    """One sub-discriminator's arrays under the original's names."""
    state = {}
    for layer, arrays in params.items():
        stem = layer.replace("convs_", "convs.")
        kernel = np.moveaxis(arrays["kernel"], (-1, -2), (0, 1))  # out, in, then space
        state[f"{stem}.bias"] = arrays["bias"]
        if layer in spectral:
            left = spectral[layer]["left"].reshape(-1, kernel.shape[1])
            state[f"{stem}.weight_orig"] = kernel
            state[f"{stem}.weight_u"], state[f"{stem}.weight_v"] = spectral[layer]["right"], left.T.ravel()
        elif "size" in arrays:
            state[f"{stem}.weight_g"], state[f"{stem}.weight_v"] = arrays["size"], kernel
        else:
            state[f"{stem}.weight"] = kernel
    return state


def load(network: torch.nn.Module, state: dict[str, np.ndarray]) -> None:
    """Fills a sub-discriminator; every one of its arrays must be given."""
    wanted = {name: value for name, value in network.state_dict().items() if "window" not in name}
    short = {name.replace(".conv.", "."): name for name in wanted}
    assert set(short) == set(state), sorted(set(short) ^ set(state))
    with torch.no_grad():
        for name, value in state.items():
            wanted[short[name]].copy_(torch.as_tensor(value).reshape(wanted[short[name]].shape))
