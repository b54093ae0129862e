"""Data sets of tensorflow-datasets as a manifest with media files; TensorFlow is not needed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from anygpt_tokenizers.cli import UserError
from tqdm import tqdm

MANIFEST = "manifest.jsonl"


def export_tfds(
    dataset: str,
    split: str,
    out: str | os.PathLike,
    modality: str,
    media_field: str,
    text_field: str,
    template: str = "{}",
    data_dir: str | None = None,
    sample_rate: int | None = None,
) -> Path:
    """Writes the media of a TFDS split as files and a manifest beside them; returns the manifest's path.

    Args:
      dataset: a name that `tfds.builder` knows, or the directory of a prepared data set
        (…/name/config/version). It must be stored as ArrayRecord, the format that needs no TensorFlow.
      modality: the manifest's field for the media, such as "image" or "speech".
      media_field: an Image feature, whose bytes are copied as they are, or integers [T] (16-bit samples).
      text_field: a Text feature, or a ClassLabel, whose names are then the texts.
      template: puts the text into a sentence: "a photo of a {}".
      sample_rate: of the samples, in Hz; by default what the feature says.

    Raises:
      UserError: no such data set, split or field, or a feature that cannot be read without TensorFlow.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{str(out)!r} exists; give the name of a new directory.")
    builder = _builder(dataset, data_dir)
    features = builder.info.features
    for field in (media_field, text_field):
        if field not in features:
            raise UserError(f"{dataset} has no field {field!r}; its fields are {', '.join(features)}.")
    suffix, write = _media_writer(features[media_field], media_field, sample_rate)
    read_text = _text_reader(features[text_field], template)
    rows = _rows(builder, split, media_field)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "media").mkdir(parents=True)
    with open(partial / MANIFEST, "w", encoding="utf-8") as manifest:
        for index, row in enumerate(tqdm(rows, desc=f"{dataset}, {split}", unit="item")):
            path = f"media/{index:07d}{suffix}"
            write(row[media_field], partial / path)
            line = {"id": f"{split}-{index}", "text": read_text(row[text_field]), modality: path}
            manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(partial, out)
    return out / MANIFEST


def _builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        if os.path.isdir(dataset):
            return tfds.builder_from_directory(dataset)
        return tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{dataset} has a feature that needs the package {error.name!r}; install it."
        ) from error
    except (ValueError, FileNotFoundError, tfds.core.registered.DatasetNotFoundError) as error:
        raise UserError(f"There is no data set {dataset!r}: {str(error).splitlines()[0]}") from error


def _rows(builder: tfds.core.DatasetBuilder, split: str, media_field: str) -> Any:
    """Random access to the split's rows; pictures stay the bytes that they are stored as."""
    is_image = isinstance(builder.info.features[media_field], tfds.features.Image)
    try:
        if not builder.is_prepared():
            builder.download_and_prepare()
        decoders = {media_field: tfds.decode.SkipDecoding()} if is_image else None
        return builder.as_data_source(split=split, decoders=decoders)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{builder.name} cannot be prepared or read without the package {error.name!r}; install it, "
            "or give the directory of a prepared data set."
        ) from error
    except (ValueError, NotImplementedError) as error:
        splits = ", ".join(builder.info.splits) or "none"
        raise UserError(f"The split {split!r} cannot be read ({error}); there are: {splits}.") from error


def _media_writer(
    feature: Any, field: str, sample_rate: int | None
) -> tuple[str, Callable[[Any, Path], None]]:
    """The files' suffix and a function that writes one."""
    if isinstance(feature, tfds.features.Image):
        return f".{feature.encoding_format or 'png'}", lambda data, path: path.write_bytes(data)
    rate = sample_rate or getattr(feature, "sample_rate", None)
    if rate is None or len(feature.shape) != 1 or not np.issubdtype(feature.np_dtype, np.integer):
        raise UserError(
            f"The field {field!r} is {feature!r}; it must be an Image, or integer samples [T] with "
            "their --sample_rate."
        )
    return ".wav", lambda data, path: soundfile.write(path, np.asarray(data, np.int16), rate)


def _text_reader(feature: Any, template: str) -> Callable[[Any], str]:
    if isinstance(feature, tfds.features.ClassLabel):
        return lambda label: template.format(feature.int2str(int(label)))
    return lambda text: template.format(text.decode("utf-8"))
