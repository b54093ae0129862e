"""Codecs of sound beside each other on the held-out small world: what is left of a clip after codes and back.

    python benchmarks/small_codecs.py --world=runs/world/heldout --codecs=shipped,runs/speech [--limit=100]

Prints one JSON line per codec and number of levels (all of them, and the first only): mel distance (mean
absolute difference of log amplitudes in 80 mel bands) and SI-SDR in dB against the original clip, bits per
second, and the judge's verdict: word error rate of pocketsphinx for speech, share of attributes right for
music. The real clips' verdict comes first.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
from anygpt_tokenizers import audio_losses
from anygpt_tokenizers.audio_codec import AudioCodec
from anygpt_tokenizers.codec import Codec, load_codec, shipped_codec
from anygpt_tokenizers.media_audio import prepare_audio
from anygpt_tokenizers.published_codec import PublishedCodec

from anygpt_jax.smallworld import judges


def first_levels(codec: Codec, levels: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function int [F, K] -> sound [T] from the first `levels` codes of every frame."""
    if isinstance(codec, AudioCodec):  # which decodes as many codes as it has codebooks
        books = codec.params["codebooks"][:levels]
        codec = AudioCodec({**codec.config, "num_codebooks": levels}, {**codec.params, "codebooks": books})
    elif not isinstance(codec, PublishedCodec):
        raise TypeError(f"{type(codec).__name__} is no codec of sound")
    return lambda codes: codec.decode(codes[None, :, :levels])[0]


def verdict(direction: str, rows: list[dict], waves: list[np.ndarray], rate: int) -> dict[str, float]:
    """{metric: score} of sounds at `rate`."""
    heard = [prepare_audio(wave, rate, judges.SAMPLE_RATE) if wave.any() else wave for wave in waves]
    scores = [judges.score(direction, row, wave) for row, wave in zip(rows, heard, strict=True)]
    return {judges.JUDGES[direction][0]: round(judges.mean_score(direction, scores), 4)}


def compare(name: str, codec: Codec, world: str, direction: str, rows: list[dict]) -> Iterator[dict]:
    """One line for all levels, one for the first."""
    clips = [codec.read_file(f"{world}/{row[codec.modality]}") for row in rows]
    coded = codec.encode_many(clips)
    for levels in sorted({codec.num_codebooks, 1}, reverse=True):
        decode = first_levels(codec, levels)
        waves = [np.clip(decode(codes), -1, 1) for codes in coded]
        padded = [np.pad(clip, (0, len(wave) - len(clip))) for clip, wave in zip(clips, waves, strict=True)]
        pairs = list(zip(waves, padded, strict=True))
        yield {
            "codec": name,
            "type": codec.type,
            "levels": levels,
            "bits_per_second": round(codec.frame_rate * levels * math.log2(codec.codebook_size)),
            "clips": len(clips),
            "mel_distance": round(
                float(np.mean([audio_losses.mel_distance(*pair, codec.sample_rate) for pair in pairs])), 4
            ),
            "si_sdr_db": round(float(np.mean([audio_losses.si_sdr(*pair) for pair in pairs])), 2),
            **verdict(direction, rows, waves, codec.sample_rate),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", required=True, help="a held-out small world")
    parser.add_argument("--codecs", default="shipped", help='directories, or "shipped"')
    parser.add_argument("--modality", default="speech", choices=("speech", "music"))
    parser.add_argument("--limit", type=int, default=100, help="at most that many clips")
    args = parser.parse_args()
    direction = f"text->{args.modality}"
    rows = judges.load_rows(args.world, args.modality, args.limit)
    real = [judges.load_media(args.world, row, args.modality) for row in rows]
    print(json.dumps({"codec": "none", **verdict(direction, rows, real, judges.SAMPLE_RATE)}), flush=True)
    for name in args.codecs.split(","):
        codec = shipped_codec(args.modality) if name == "shipped" else load_codec(name)
        for line in compare(name, codec, args.world, direction, rows):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
