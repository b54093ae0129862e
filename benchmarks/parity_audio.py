"""The audio codecs against their PyTorch originals at published sizes, on random weights.

    pip install torch transformers==4.57.6 einops && pip install --no-deps speechtokenizer==0.1.2
    python benchmarks/parity_audio.py [--codecs=snake,elu,music,audio] [--batches=1,4] [--seconds=30]

Prints one JSON line per codec, batch and length (1, 7, hop - 1, hop, hop + 1 samples, 1 s and `--seconds`,
the last two 123 samples longer): relative root mean square error of the latents, largest error of the sound
decoded from the original's codes, how many codes differ, and how many of those that win by a margin of more
than 1e-4 do. Memory peaks at about 8 GB with the defaults.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from anygpt_tokenizers.published_codec import PublishedCodec
from audio_codecs import CODECS, Originals

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from audio_signals import margins, sound


@torch.no_grad()
def compare(codec: PublishedCodec, originals: Originals, samples: int, batch: int) -> dict:
    """One line; the original's memory is given back before ours runs."""
    wave = sound(batch, samples, codec.sample_rate)
    tensor = torch.as_tensor(wave)
    expected = originals.latents(tensor).numpy()
    codes = originals.encode(tensor).numpy()
    sounds = originals.decode(torch.as_tensor(codes)).numpy()
    latents, ours = codec.latents(wave[:, 0]), codec.encode(wave[:, 0])
    equal = ours == codes
    clear = margins(codec.params["quantizer"]["embed"][: codes.shape[-1]], expected, codes) > 1e-4
    return {
        "batch": batch,
        "samples": samples,
        "latents_rms": float(np.sqrt(np.mean(expected**2))),
        "latents_variation": float(expected.std(1).mean() / expected.std()),
        "latents_relative_error": float(np.sqrt(np.mean((latents - expected) ** 2) / np.mean(expected**2))),
        "sound_rms": float(np.sqrt(np.mean(sounds**2))),
        "sound_error": float(np.abs(codec.decode(codes) - sounds).max()),
        "codes": codes.size,
        "codes_used": len(np.unique(codes)),
        "codes_different": int((~equal).sum()),
        "clear_codes_different": int((clear & ~equal).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", default="snake,elu,music,audio")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--seconds", type=int, default=30)
    args = parser.parse_args()
    for name in args.codecs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            codec, originals = CODECS[name](Path(folder))
        hop, rate = codec.hop_length, codec.sample_rate
        for samples in (1, 7, hop - 1, hop, hop + 1, rate + 123, args.seconds * rate + 123):
            for batch in map(int, args.batches.split(",")):
                row = compare(codec, originals, samples, batch)
                print(json.dumps({"codec": name, **row}), flush=True)


if __name__ == "__main__":
    main()
