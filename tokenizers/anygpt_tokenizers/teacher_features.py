"""HuBERT's features of every sound of a manifest, as files for the distillation of SpeechTokenizer.

`python -m anygpt_tokenizers.teacher_features --data=DIR --model=HF_DIR --out=DIR`, with torch and
transformers installed (the extra `parity` has both). --out receives an .npy file [frames, 768] per sound and
a manifest.jsonl that names sounds and features; train with --data=OUT and config.teacher.field at "features".
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from anygpt_tokenizers import cli
from anygpt_tokenizers.checkpoint_files import write_new_directory
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.manifest import rows_with
from anygpt_tokenizers.media_audio import read_audio

RATE = 16_000  # Hz, what HuBERT hears
SHORTEST = 400  # samples that its first frame sees
FIELD = "features"


def hubert_teacher(model: str | os.PathLike, layer: str | int = "avg") -> Callable:
    """HuBERT (Hsu et al. 2021) as a teacher: a function (wave [T], rate) -> float32 [F, 768].

    F is floor((T - 400) / 320) + 1, of clips shorter than 400 samples 1. SpeechTokenizer's published recipe
    takes HuBERT base (`hubert-base-ls960`) and the mean over its layers.

    Args:
      model: directory or hub name that transformers' HubertModel loads; read with torch.
      layer: "avg", the mean over the embeddings and all layers, or the number of one, 0 for the embeddings.

    Raises:
      UserError: torch or transformers isn't installed, no such model, no such layer, or another rate.
    """
    try:
        import torch
        from transformers import HubertModel, Wav2Vec2FeatureExtractor
    except ImportError as error:
        raise UserError("HuBERT's features need torch and transformers: pip install both.") from error
    try:
        network = HubertModel.from_pretrained(model).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"{model} is no HuBERT of transformers: {str(error).splitlines()[0]}") from error
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(model)
    except OSError:  # a model saved alone; the published one's extractor is the default one
        extractor = Wav2Vec2FeatureExtractor()
    count = network.config.num_hidden_layers + 1
    if layer != "avg" and not (isinstance(layer, int) and 0 <= layer < count):
        raise UserError(f"layer is {layer!r}; there are avg and 0 to {count - 1}.")

    @torch.inference_mode()
    def features(wave: np.ndarray, rate: int) -> np.ndarray:
        if rate != RATE:
            raise UserError(f"HuBERT hears {RATE} Hz, not {rate}: the codec's sample rate must be {RATE}.")
        wave = np.pad(wave, (0, max(0, SHORTEST - len(wave))))
        values = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_values
        states = torch.stack(network(values, output_hidden_states=True).hidden_states)[:, 0]
        return (states.mean(0) if layer == "avg" else states[layer]).numpy()

    return features


def write_features(data: str, out: str, teacher: Callable, modality: str = "speech") -> tuple[int, list[str]]:
    """Writes `teacher`'s features of the sounds in data/manifest.jsonl to the new directory `out`.

    Returns:
      How many sounds it has, and a line for each that could not be read and was left out.
    """
    rows, skipped, folder = [], [], Path(out).resolve()

    def fill(partial: Path) -> None:
        for number, row in enumerate(tqdm(rows_with(data, modality), desc="features", unit="file")):
            source = (Path(data) / row[modality]).resolve()
            try:
                wave = read_audio(source, RATE)
            except MediaError as error:
                skipped.append(str(error))
                continue
            name = f"{number:08d}.npy"
            np.save(partial / name, np.asarray(teacher(wave, RATE), np.float32))
            rows.append({**row, modality: os.path.relpath(source, folder), FIELD: name})
        if not rows:
            raise UserError(f"{data}: none of the sounds can be read; the first: {skipped[0]}.")
        (partial / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write_new_directory(folder, fill)
    return len(rows), skipped


def main(_: list[str]) -> None:
    f = flags.FLAGS
    layer = int(f.layer) if f.layer.isdigit() else f.layer
    count, skipped = write_features(f.data, f.out, hubert_teacher(f.model, layer), f.modality)
    print(f"{f.out}: features of {count} files, field {FIELD!r} of its manifest.jsonl")
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "directory with a manifest.jsonl", required=True)
    flags.DEFINE_string("model", None, "directory or hub name of a HuBERT of transformers", required=True)
    flags.DEFINE_string("out", None, "new directory", required=True)
    flags.DEFINE_string("layer", "avg", "avg, or the number of one layer")
    flags.DEFINE_string("modality", "speech", "the manifest's field with the sound files")
    cli.run(main)
