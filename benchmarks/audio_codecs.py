"""Speed of the audio codecs beside their PyTorch originals, at published sizes, on random weights.

    pip install torch transformers==4.57.6 einops && pip install --no-deps speechtokenizer==0.1.2
    python benchmarks/audio_codecs.py [--codecs=snake,music,audio] [--seconds=5,30] [--batches=1,8]

Prints one JSON line per codec, length and batch: seconds for encode and decode, by the clock and summed over
the cores (which other jobs disturb less), each the least of `--rounds`; the two sides take turns, after one
run of each that doesn't count. Both use all cores that the process may run on. What they compute is compared
by `parity_audio.py`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from anygpt_tokenizers import importers
from anygpt_tokenizers.published_codec import PublishedCodec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import audio_oracles as oracles
from audio_signals import sound

SPEECH = {
    **oracles.SPEECHTOKENIZER,
    "n_filters": 64,
    "dimension": 1024,
    "semantic_dimension": 768,
    "codebook_size": 1024,
    "n_q": 8,
}
MUSIC = {
    **oracles.ENCODEC_32K,
    "num_filters": 64,
    "hidden_size": 128,
    "codebook_size": 2048,
    "target_bandwidths": [2.2],
}
AUDIO = {"target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0]}  # else transformers' defaults


class Originals(NamedTuple):
    """The original's functions of torch tensors.

    latents and encode: waves [B, 1, T] -> [B, F, D] and codes [B, F, K]; decode: codes -> [B, T].
    """

    latents: Callable
    encode: Callable
    decode: Callable


def speech(activation: str, folder: Path) -> tuple[PublishedCodec, Originals]:
    """SpeechTokenizer: ours, imported, and the original."""
    config = {**SPEECH, "activation": activation}
    model = oracles.random_speechtokenizer(**config)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "model.pt")
    codec = importers.import_speechtokenizer(folder / "model.pt", folder / "config.json", folder / "codec")
    return codec, Originals(
        lambda wave: model.encoder(wave).transpose(1, 2),
        lambda wave: model.encode(wave).permute(1, 2, 0),
        lambda codes: model.decode(codes.permute(2, 0, 1))[:, 0],
    )


def encodec(config: dict, bandwidth: float, folder: Path) -> tuple[PublishedCodec, Originals]:
    """EnCodec at one bandwidth, in the same form."""
    model = oracles.random_encodec(**config)
    model.save_pretrained(folder / "source")
    codec = importers.import_encodec(folder / "source", folder / "codec")
    assert codec.levels_for(bandwidth) == codec.num_codebooks
    return codec, Originals(
        lambda wave: model.encoder(wave).transpose(1, 2),
        lambda wave: model.encode(wave, bandwidth=bandwidth).audio_codes[0].transpose(1, 2),
        lambda codes: model.decode(codes.transpose(1, 2)[None], [None]).audio_values[:, 0],
    )


CODECS = {
    "snake": lambda folder: speech("Snake", folder),
    "elu": lambda folder: speech("ELU", folder),
    "music": lambda folder: encodec(MUSIC, 2.2, folder),
    "audio": lambda folder: encodec(AUDIO, 3.0, folder),
}


def timed(function: Callable) -> tuple[float, float]:
    """Seconds that a call takes, by the clock and of all cores."""
    clock, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cores


def in_turns(functions: dict[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """{name: {"clock", "cores"}}, each the least of all rounds; one more run of each comes before."""
    times: dict[str, list] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            times[name].append(timed(function))
    least = {name: [min(column) for column in zip(*rows[1:], strict=True)] for name, rows in times.items()}
    return {
        name: {"clock": round(clock, 3), "cores": round(cores, 3)} for name, (clock, cores) in least.items()
    }


@torch.no_grad()
def compare(codec: PublishedCodec, originals: Originals, seconds: float, batch: int, rounds: int) -> dict:
    """One line."""
    wave = sound(batch, int(seconds * codec.sample_rate), codec.sample_rate)
    tensor, codes = torch.as_tensor(wave), codec.encode(wave[:, 0])
    coded = torch.as_tensor(codes)
    encode = {"torch": lambda: originals.encode(tensor), "jax": lambda: codec.encode(wave[:, 0])}
    decode = {"torch": lambda: originals.decode(coded), "jax": lambda: codec.decode(codes)}
    return {
        "seconds": seconds,
        "batch": batch,
        "encode": in_turns(encode, rounds),
        "decode": in_turns(decode, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", default="snake,music,audio")
    parser.add_argument("--seconds", default="5,30")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in args.codecs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            codec, originals = CODECS[name](Path(folder))
        for seconds in map(float, args.seconds.split(",")):
            for batch in map(int, args.batches.split(",")):
                row = compare(codec, originals, seconds, batch, args.rounds)
                print(json.dumps({"codec": name, **row}), flush=True)


if __name__ == "__main__":
    main()
