"""A data set of tensorflow-datasets becomes a manifest, without TensorFlow."""

import io
import json
import sys

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from anygpt_tokenizers.cli import UserError
from PIL import Image

from anygpt_jax.data.tfds_source import export_tfds


def _png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class Mixed(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "samples": tfds.features.Tensor(shape=(None,), dtype=np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            samples = np.full(160, 100 * i, np.int64)
            yield i, {"image": _png(60 * i), "caption": f"picture {i}", "label": i % 2, "samples": samples}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    builder = Mixed(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def _lines(manifest):
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def test_pictures_keep_their_pixels_and_captions(prepared, tmp_path):
    manifest = export_tfds(prepared, "train", tmp_path / "out", "image", "image", "caption")
    levels = {}
    for line in _lines(manifest):
        levels[line["text"]] = np.asarray(Image.open(manifest.parent / line["image"]))[0, 0, 0]
    assert levels == {"picture 0": 0, "picture 1": 60, "picture 2": 120}
    assert "tensorflow" not in sys.modules


def test_samples_become_waves_and_labels_sentences(prepared, tmp_path):
    out = tmp_path / "out"
    manifest = export_tfds(
        prepared, "train[:2]", out, "speech", "samples", "label", "say {}", sample_rate=8000
    )
    lines = _lines(manifest)
    assert len(lines) == 2 and {line["text"] for line in lines} <= {"say cat", "say dog"}
    samples, rate = soundfile.read(out / lines[0]["speech"], dtype="int16")
    assert rate == 8000 and len(samples) == 160 and set(samples) <= {0, 100, 200}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "no_such_data_set"}, "no data set"),
        ({"split": "validation"}, "there are: train"),
        ({"media_field": "picture"}, "no field 'picture'"),
        ({"media_field": "samples"}, "--sample_rate"),
        ({"media_field": "caption"}, "must be an Image"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_leaves_nothing(prepared, tmp_path, change, message):
    given = {"dataset": prepared, "split": "train", "media_field": "image", "text_field": "caption"} | change
    with pytest.raises(UserError, match=message):
        export_tfds(**given, modality="image", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
