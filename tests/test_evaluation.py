"""Evaluation: scores, ceilings and examples of all directions, and what happens without data."""

import dataclasses

import fake_model
import numpy as np
import pytest
import soundfile
from anygpt_tokenizers.cli import UserError

from anygpt_jax.evaluation import evaluate
from anygpt_jax.smallworld.generate import generate

N = 3


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "heldout"
    generate(folder, "heldout", images=N, speech=N, music=N)
    return folder


@pytest.fixture(scope="module")
def result(heldout, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return out, evaluate(fake_model.load(), heldout, N, out)


def test_all_six_directions_have_scores_and_ceilings(result):
    _, table = result
    assert list(table["directions"]) == [
        *("image->text", "text->image", "speech->text", "text->speech", "music->text", "text->music")
    ]
    for direction, entry in table["directions"].items():
        assert entry["n"] == N
        if entry["metric"] == "WER":
            assert entry["ceiling_real"] < 0.3 and entry["score"] > 0.5
        else:
            assert entry["ceiling_real"] > 0.7, direction
            assert entry["score"] < entry["ceiling_real"]


def test_examples_are_the_first_rows_and_their_files_exist(result):
    out, table = result
    for direction, examples in table["examples"].items():
        assert len(examples) == N
        for example in examples:
            file = example["prompt"] if direction.endswith("->text") else example["output"]
            assert (out / file).is_file()
    assert (out / "evaluation.json").is_file()


def test_the_same_seed_gives_the_same_scores_and_known_ceilings_are_not_judged_again(
    heldout, result, tmp_path
):
    _, first = result
    second = evaluate(fake_model.load(), heldout, N, tmp_path, ceilings=first["ceilings"])
    assert second["directions"] == first["directions"]
    assert second["examples"]["speech->text"] == first["examples"]["speech->text"]


def test_missing_or_too_little_data_is_named(heldout, tmp_path):
    with pytest.raises(UserError, match="no held-out data"):
        evaluate(fake_model.load(), tmp_path / "nothing", N, tmp_path)
    with pytest.raises(UserError, match="holds only 3 items of image"):
        evaluate(fake_model.load(), heldout, N + 1, tmp_path)


class ExactImages(fake_model.NoiseImages):
    """Remembers its pictures of 128×128: the code is a picture's number."""

    image_size, hash = 128, "exact-image"

    def encode_many(self, items):
        self.known = np.stack(items)
        assert self.known.shape[1:] == (128, 128, 3)
        return [np.full((16, 2), index, np.int32) for index in range(len(items))]

    def decode(self, codes):
        return self.known[codes[:, 0, 0] % len(self.known)]


class ExactAudio(fake_model.NoiseAudio):
    """Remembers its sounds, at 32 kHz and in stereo."""

    sample_rate, hop_length = 32_000, 1280

    def encode_many(self, items):
        self.known = items
        shape = (self.num_codebooks,)
        return [np.full((len(item) // 1280, *shape), i, np.int32) for i, item in enumerate(items)]

    def decode(self, codes):
        length = codes.shape[1] * 1280
        waves = [np.resize(self.known[code % len(self.known)], length) for code in codes[:, 0, 0]]
        return np.repeat(np.stack(waves)[..., None], 2, axis=2)


def test_codecs_of_another_size_and_rate_are_judged_like_those_of_the_small_world(heldout, result, tmp_path):
    codecs = {"image": ExactImages(), "speech": ExactAudio("speech", 1), "music": ExactAudio("music", 2)}
    model = dataclasses.replace(fake_model.load(), codecs=codecs)
    table = evaluate(model, heldout, N, tmp_path)
    for modality, entry in table["ceilings"].items():
        assert entry["codec"] == entry["real"] == result[1]["ceilings"][modality]["real"], modality
    for modality in ("speech", "music"):
        prompt = soundfile.info(tmp_path / table["examples"][f"{modality}->text"][0]["prompt"])
        truth = soundfile.info(heldout / f"{modality}/000000.wav")
        assert (prompt.samplerate, truth.samplerate) == (32_000, 16_000)
        assert prompt.duration == pytest.approx(truth.duration, abs=1e-3)
