"""Codecs of sound beside each other on the held-out small world: what is left of a clip after codes and back,
and what a model makes of a text by way of its codec.

    pip install torch && pip install --no-deps resemblyzer webrtcvad-wheels    # speaker distance
    python benchmarks/small_codecs.py --world=runs/world/heldout --codecs=shipped,runs/speech [--limit=100]
    python benchmarks/small_codecs.py --world=runs/world/heldout --models=shipped,runs/mine/model

Prints one JSON line per codec and way back to sound: from all levels of codes, from the first only, and,
where a SoundStorm lies in the codec's directory, from the first with the others told by it, without and with
the first 40 frames of another clip of the same voice as its prompt. Each has the mel distance (mean absolute
difference of log amplitudes in 80 mel bands) and SI-SDR in dB against the original clip, bits per second, and
the judge's verdict: word error rate of pocketsphinx for speech, share of attributes right for music. For
speech also the speaker distance, 1 - cosine of Resemblyzer's embeddings of the two. The real clips come
first; their speaker distance is that to the prompt's clip, "other_speaker" that to a clip of another voice.

A model writes the codes of each clip's text; there is nothing to compare these with but the voice and what
is to be heard.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
from anygpt_tokenizers import audio_losses
from anygpt_tokenizers.audio_codec import AudioCodec
from anygpt_tokenizers.codec import Codec, load_codec, shipped_codec
from anygpt_tokenizers.media_audio import prepare_audio
from anygpt_tokenizers.published_codec import PublishedCodec
from anygpt_tokenizers.speechtokenizer import SOUNDSTORM, SpeechTokenizer

from anygpt_jax.checkpoint import LoadedModel, load_model
from anygpt_jax.sampling.generator import Generator
from anygpt_jax.shipped import load_shipped
from anygpt_jax.smallworld import judges

PROMPT = 40  # frames; every other length would be compiled anew
Way = tuple[int, Callable[[int], np.ndarray]]  # codes of a frame that are told; index of a clip -> its sound


def ways_back(codec: Codec, coded: list[np.ndarray], voices: list[np.ndarray]) -> dict[str, Way]:
    """How codes [F, levels] become sound again, by name; `voices`: all levels of a clip of the same voice."""
    levels = coded[0].shape[1]
    if isinstance(codec, AudioCodec):  # which decodes as many codes as it has codebooks
        books = codec.params["codebooks"][:1]
        first = AudioCodec({**codec.config, "num_codebooks": 1}, {**codec.params, "codebooks": books})
        ways = {"all levels": (levels, lambda index: codec.decode(coded[index][None])[0])}
        if levels > 1:
            ways["first level"] = 1, lambda index: first.decode(coded[index][None, :, :1])[0]
        return ways
    if not isinstance(codec, PublishedCodec):
        raise TypeError(f"{type(codec).__name__} is no codec of sound")
    ways = {"first level": (1, lambda index: PublishedCodec.decode(codec, coded[index][None, :, :1])[0])}
    if levels > 1:
        ways["all levels"] = levels, lambda index: PublishedCodec.decode(codec, coded[index][None])[0]
    if isinstance(codec, SpeechTokenizer) and (codec.directory / SOUNDSTORM).is_dir():
        codec.num_codebooks = 1
        ways["SoundStorm"] = 1, lambda index: codec.decode(coded[index][None, :, :1])[0]
        ways["SoundStorm, prompt"] = (
            1,
            lambda index: codec.decode(coded[index][None, :, :1], voice=voices[index][:PROMPT])[0],
        )
    return ways


def all_levels(codec: Codec, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Codes of clips, also of levels that the codec's tokens leave out."""
    if isinstance(codec, PublishedCodec):
        return codec.encode_many(clips, codec.spec.quantizers)
    return codec.encode_many(clips)


def clips_of(codec: Codec, world: str, rows: list[dict]) -> list[np.ndarray]:
    """The real clips as the codec reads them."""
    return [codec.read_file(f"{world}/{row[codec.modality]}") for row in rows]


def partners_of(rows: list[dict], same_voice: bool = True) -> list[int]:
    """For each row the next one of the same voice, or of another; itself if there is none."""
    voices = [row["attributes"].get("voice") for row in rows]
    after = [[*range(index + 1, len(rows)), *range(index)] for index in range(len(rows))]
    return [
        next((other for other in after[index] if (voices[other] == voice) == same_voice), index)
        for index, voice in enumerate(voices)
    ]


@functools.cache
def embedder() -> Callable[[np.ndarray], np.ndarray]:
    """Sound at 16 kHz -> a unit vector that tells the speaker."""
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False).embed_utterance


def speaker_distance(waves: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Mean of 1 - cosine."""
    pairs = zip(waves, others, strict=True)
    return round(float(np.mean([1 - embedder()(wave) @ embedder()(other) for wave, other in pairs])), 4)


def verdict(direction: str, rows: list[dict], waves: list[np.ndarray], real: list[np.ndarray]) -> dict:
    """{metric: score} of sounds at the judges' rate; of speech also how far the speaker is from `real`'s."""
    scores = [judges.score(direction, row, wave) for row, wave in zip(rows, waves, strict=True)]
    found = {judges.JUDGES[direction][0]: round(judges.mean_score(direction, scores), 4)}
    return found | ({"speaker_distance": speaker_distance(waves, real)} if "speech" in direction else {})


def heard(codec: Codec, waves: list[np.ndarray]) -> list[np.ndarray]:
    """Sounds at the judges' rate; silence as it is."""
    return [prepare_audio(w, codec.sample_rate, judges.SAMPLE_RATE) if w.any() else w for w in waves]


def compare(
    name: str, codec: Codec, world: str, direction: str, rows: list[dict], real: list
) -> Iterator[dict]:
    """One line for each way back from the codes of the real clips."""
    clips = clips_of(codec, world, rows)
    coded = all_levels(codec, clips)
    voices = [coded[index] for index in partners_of(rows)]
    for way, (levels, decode) in ways_back(codec, coded, voices).items():
        waves = [np.clip(decode(index), -1, 1) for index in range(len(clips))]
        padded = [np.pad(clip, (0, len(wave) - len(clip))) for clip, wave in zip(clips, waves, strict=True)]
        pairs = list(zip(waves, padded, strict=True))
        distances = [audio_losses.mel_distance(*pair, codec.sample_rate) for pair in pairs]
        yield {
            "codec": name,
            "type": codec.type,
            "from": way,
            "bits_per_second": round(codec.frame_rate * levels * math.log2(codec.codebook_size)),
            "clips": len(clips),
            "mel_distance": round(float(np.mean(distances)), 4),
            "si_sdr_db": round(float(np.mean([audio_losses.si_sdr(*pair) for pair in pairs])), 2),
            **verdict(direction, rows, heard(codec, waves), real),
        }


def listen(
    name: str, model: LoadedModel, world: str, direction: str, rows: list[dict], real: list
) -> Iterator[dict]:
    """One line for each way to sound from the codes that a model writes for the clips' texts."""
    codec = model.codecs[judges.modality_of(direction)]
    coded = Generator(model).generate(direction, [row["text"] for row in rows], seed=0)
    clips = clips_of(codec, world, [rows[index] for index in partners_of(rows)])
    for way, (_, decode) in ways_back(codec, coded, all_levels(codec, clips)).items():
        waves = [np.clip(decode(index), -1, 1) for index in range(len(rows))]
        line = {"model": name, "codec": codec.type, "from": way, "clips": len(rows)}
        yield {**line, **verdict(direction, rows, heard(codec, waves), real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", required=True, help="a held-out small world")
    parser.add_argument("--codecs", default="", help='directories, or "shipped"')
    parser.add_argument("--models", default="", help='directories of `train`, or "shipped"')
    parser.add_argument("--modality", default="speech", choices=("speech", "music"))
    parser.add_argument("--limit", type=int, default=100, help="at most that many clips")
    args = parser.parse_args()
    direction = f"text->{args.modality}"
    rows = judges.load_rows(args.world, args.modality, args.limit)
    real = [judges.load_media(args.world, row, args.modality) for row in rows]
    first = {"codec": "none", **verdict(direction, rows, real, [real[index] for index in partners_of(rows)])}
    if args.modality == "speech":
        first["other_speaker"] = speaker_distance(
            real, [real[index] for index in partners_of(rows, same_voice=False)]
        )
    print(json.dumps(first), flush=True)
    for name in filter(None, args.codecs.split(",")):
        codec = shipped_codec(args.modality) if name == "shipped" else load_codec(name)
        for line in compare(name, codec, args.world, direction, rows, real):
            print(json.dumps(line), flush=True)
    for name in filter(None, args.models.split(",")):
        model = load_shipped() if name == "shipped" else load_model(name)
        for line in listen(name, model, args.world, direction, rows, real):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
