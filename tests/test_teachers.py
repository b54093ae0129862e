"""Teachers of the semantic level: a function that the config names, and files made from HuBERT."""

import json

import numpy as np
import pytest
from anygpt_tokenizers import cli, teachers
from anygpt_tokenizers.audio_examples import read_clips
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.teacher_features import hubert_teacher, write_features
from anygpt_tokenizers.train import build_training, train_codec
from training_media import RATE, read_log, write_tones

MODULE = """
from anygpt_tokenizers import teachers
heard = []
def features(wave, rate):
    heard.append((len(wave), rate))
    return teachers.cepstra(wave, rate)
"""


def load(**teacher):
    config = cli.load_config("configs/tokenizers/speechtokenizer.py:dummy").unlock()
    config.steps = 10
    config.adversary.networks = {}  # which a teacher has nothing to do with
    config.loss_weights = {"l1": 1.0, "mel_0": 1.0, "level_commitment": 1.0, "distill": 10.0}
    config.teacher.update({"field": "", "function": "", **teacher})
    return config


def test_a_teacher_of_ones_own_trains_like_files_of_its_features(tmp_path, monkeypatch):
    (tmp_path / "my_teacher.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    data = write_tones(tmp_path, "speech", count=3)
    called = train_codec(load(function="my_teacher:features"), data, tmp_path / "called", data)
    import my_teacher

    assert my_teacher.heard == [(RATE, RATE)] * 6  # each file once, to train with and to measure with
    count, skipped = write_features(data, tmp_path / "files", teachers.cepstra)
    assert (count, skipped) == (3, [])
    files = tmp_path / "files"
    read = train_codec(load(field="features"), files, tmp_path / "read", files)
    assert load_codec(tmp_path / "called").hash == load_codec(tmp_path / "read").hash
    assert read_log(tmp_path / "called") == read_log(tmp_path / "read")
    assert called["heldout"] == read["heldout"] and "teacher_cosine" in called["heldout"]


def test_a_file_that_cannot_be_read_is_left_out_and_none_at_all_is_said(tmp_path):
    data = write_tones(tmp_path, "speech", count=2)
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    count, skipped = write_features(data, tmp_path / "out", teachers.cepstra)
    assert count == 1 and len(skipped) == 1 and "1.wav" in skipped[0]
    (row,) = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert (tmp_path / "out" / row["speech"]).samefile(tmp_path / "0.wav") and row["text"] == "0"
    (tmp_path / "0.wav").write_bytes(b"RIFF")
    with pytest.raises(cli.UserError, match="none of the sounds"):
        write_features(data, tmp_path / "none", teachers.cepstra)
    assert not (tmp_path / "none").exists()


def test_features_of_another_frame_rate_are_refused_with_both_counts(tmp_path):
    def seldom(wave, stem):  # as a file of features that doesn't go with the sound
        np.save(stem.with_suffix(".npy"), np.zeros((46, 39), np.float32))
        return stem.with_suffix(".npy").name

    data = write_tones(tmp_path, "speech", count=2, features=seldom)
    with pytest.raises(cli.UserError, match=r"0\.npy: .* are 46 frames; the codec's are 50, at 50 a second"):
        build_training(load(field="features")).read_examples(data)
    for path in tmp_path.glob("*.npy"):
        np.save(path, np.zeros((47, 39), np.float32))  # a few frames more or fewer are usual
    assert len(build_training(load(field="features")).read_examples(data)[0].features) == 47
    often = load(function="anygpt_tokenizers.teachers:cepstra")
    often.codec.strides = (32, 20)  # 25 frames a second
    with pytest.raises(cli.UserError, match=r"0\.wav: .* are 51 frames; the codec's are 25, at 25 a second"):
        build_training(often).read_examples(data)


@pytest.mark.parity
def test_huberts_features_are_the_mean_of_its_hidden_states(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "conv_dim": (8,) * 7}
    model = transformers.HubertModel(transformers.HubertConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "hubert")
    wave = np.random.default_rng(0).normal(0.3, 0.1, 7000).astype(np.float32)
    normal = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.no_grad():
        states = model(torch.as_tensor(normal)[None], output_hidden_states=True).hidden_states
    states = np.stack([state[0].numpy() for state in states])
    features = hubert_teacher(tmp_path / "hubert")(wave, RATE)
    assert features.shape == ((7000 - 400) // 320 + 1, 24) and features.dtype == np.float32
    np.testing.assert_allclose(features, states.mean(0), atol=1e-5)
    np.testing.assert_allclose(hubert_teacher(tmp_path / "hubert", 1)(wave, RATE), states[1], atol=1e-5)
    assert hubert_teacher(tmp_path / "hubert")(wave[:3], RATE).shape == (1, 24)
    data = write_tones(tmp_path, "speech", count=1)
    write_features(data, tmp_path / "files", hubert_teacher(tmp_path / "hubert"))
    config = load(field="features")
    config.codec.semantic_dimension = 24
    assert read_clips(config, tmp_path / "files", 320)[0].features.shape == (49, 24)
    for arguments, words in [
        ((tmp_path / "nothing",), "no HuBERT"),
        ((tmp_path / "hubert", 3), "0 to 2"),
        ((tmp_path / "hubert", "last"), "'last'"),
    ]:
        with pytest.raises(cli.UserError, match=words):
            hubert_teacher(*arguments)
    with pytest.raises(cli.UserError, match="16000"):
        hubert_teacher(tmp_path / "hubert")(wave, 24_000)
