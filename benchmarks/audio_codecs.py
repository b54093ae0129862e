"""Speed and parity of the audio codecs beside their PyTorch originals, at published sizes, on random weights.

    pip install torch transformers einops && pip install --no-deps speechtokenizer==0.1.2
    python benchmarks/audio_codecs.py [--codecs=speech,music,audio] [--seconds=5,30] [--batches=1,8]

Prints one JSON line per codec, length and batch: seconds for encode and decode (the best of `--repeats` after
a first run, which includes compilation; with `--repeats=0` the first), how far latents and sound are from the
original's, and how many codes are equal. Both sides use all cores that the process may run on.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import audio_oracles as oracles
from anygpt_tokenizers import importers
from anygpt_tokenizers.published_codec import PublishedCodec
from audio_signals import sound

SPEECH = {
    **oracles.SPEECHTOKENIZER,
    "n_filters": 64,
    "dimension": 1024,
    "semantic_dimension": 768,
    "codebook_size": 1024,
    "n_q": 8,
    "activation": "Snake",
}
MUSIC = {
    **oracles.ENCODEC_32K,
    "num_filters": 64,
    "hidden_size": 128,
    "codebook_size": 2048,
    "target_bandwidths": [2.2],
}
AUDIO = {"target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0]}  # else transformers' defaults


def speech(folder: Path) -> tuple[PublishedCodec, Callable, Callable, Callable]:
    """SpeechTokenizer (Snake): our codec, and the original's latents, encode and decode."""
    model = oracles.random_speechtokenizer(**SPEECH)
    (folder / "config.json").write_text(json.dumps(SPEECH))
    torch.save(model.state_dict(), folder / "model.pt")
    codec = importers.import_speechtokenizer(folder / "model.pt", folder / "config.json", folder / "codec")
    return (
        codec,
        lambda wave: model.encoder(wave).transpose(1, 2),
        lambda wave: model.encode(wave).permute(1, 2, 0),
        lambda codes: model.decode(codes.permute(2, 0, 1))[:, 0],
    )


def encodec(
    config: dict, bandwidth: float, folder: Path
) -> tuple[PublishedCodec, Callable, Callable, Callable]:
    """EnCodec at one bandwidth, in the same form."""
    model = oracles.random_encodec(**config)
    model.save_pretrained(folder / "source")
    codec = importers.import_encodec(folder / "source", folder / "codec")
    assert codec.levels_for(bandwidth) == codec.num_codebooks
    return (
        codec,
        lambda wave: model.encoder(wave).transpose(1, 2),
        lambda wave: model.encode(wave, bandwidth=bandwidth).audio_codes[0].transpose(1, 2),
        lambda codes: model.decode(codes.transpose(1, 2)[None], [None]).audio_values[:, 0],
    )


CODECS = {
    "speech": speech,
    "music": lambda folder: encodec(MUSIC, 2.2, folder),
    "audio": lambda folder: encodec(AUDIO, 3.0, folder),
}


def best(function: Callable, repeats: int) -> tuple[float, float, np.ndarray]:
    """(seconds of the first run, of the best later one if there is one, result)."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = np.asarray(function())
        times.append(time.perf_counter() - start)
    return times[0], min(times[1:] or times), result


@torch.no_grad()
def compare(codec: PublishedCodec, originals: tuple, seconds: float, batch: int, repeats: int) -> dict:
    """One row of the table."""
    latents_of, encode, decode = originals
    wave = sound(batch, int(seconds * codec.sample_rate), codec.sample_rate)
    tensor = torch.as_tensor(wave)
    _, torch_encode, codes = best(lambda: encode(tensor), repeats)
    _, torch_decode, sounds = best(lambda: decode(torch.as_tensor(codes)), repeats)
    first_encode, our_encode, our_codes = best(lambda: codec.encode(wave[:, 0]), repeats)
    first_decode, our_decode, our_sounds = best(lambda: codec.decode(codes), repeats)
    latents, expected = codec.latents(wave[:, 0]), latents_of(tensor).numpy()
    return {
        "seconds": seconds,
        "batch": batch,
        "encode": {"torch": torch_encode, "jax": our_encode, "jax_first": first_encode},
        "decode": {"torch": torch_decode, "jax": our_decode, "jax_first": first_decode},
        "latents_relative_rms": float(np.sqrt(np.mean((latents - expected) ** 2) / np.mean(expected**2))),
        "latents_variation": float(expected.std(1).mean() / expected.std()),
        "codes_equal": float((our_codes == codes).mean()),
        "codes_used": len(np.unique(codes)),
        "sound_error": float(np.abs(our_sounds - sounds).max()),
        "sound_rms": float(sounds.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", default="speech,music,audio")
    parser.add_argument("--seconds", default="5,30")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in args.codecs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            codec, *originals = CODECS[name](Path(folder))
        for seconds in map(float, args.seconds.split(",")):
            for batch in map(int, args.batches.split(",")):
                row = compare(codec, originals, seconds, batch, args.repeats)
                print(json.dumps({"codec": name, **row}), flush=True)


if __name__ == "__main__":
    main()
