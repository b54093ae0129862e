"""The small world: what it says, what it hides from training, and that it is the same every time."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from anygpt_tokenizers.cli import UserError
from PIL import Image

from anygpt_jax.smallworld import captions, images, music, speech
from anygpt_jax.smallworld.generate import generate

EVERYTHING = [*captions.all_shapes(), *captions.all_pairs(), *captions.all_digits(), *captions.all_music()]


def test_every_caption_has_exactly_one_meaning():
    texts = [captions.caption(attributes) for attributes in EVERYTHING]
    assert len(set(texts)) == len(texts)
    assert [captions.parse_caption(text) for text in texts] == EVERYTHING
    assert captions.parse_caption("a small red dog") is None


def test_a_pair_and_its_converse_are_the_same_picture():
    left = captions.parse_caption("a small red circle left of a large blue square")
    right = captions.parse_caption("a large blue square right of a small red circle")
    assert captions.canonical(left) == captions.canonical(right) == left


def test_a_fixed_part_of_the_world_is_held_out():
    sizes = {kind: len(captions.of_split(kind, "heldout")) for kind in ("shape", "pair", "music")}
    assert sizes == {"shape": 6, "pair": 864, "music": 8}
    assert {item["color"] for item in captions.of_split("shape", "heldout")} == set(captions.COLORS)
    # Chosen by hash: these very items, whatever the version of Python or NumPy.
    assert "a small yellow triangle" in captions.heldout_shapes()
    assert "a fast rising organ tune in a major key" in captions.heldout_music()


def test_no_held_out_item_is_ever_in_training():
    for kind in ("shape", "pair", "music"):
        train, heldout = (captions.of_split(kind, split) for split in captions.SPLITS)
        seen = {captions.caption(captions.canonical(item)) for item in train}
        assert seen.isdisjoint(captions.caption(captions.canonical(item)) for item in heldout)
    for template, texts in captions.sentences("heldout").items():
        assert set(texts).isdisjoint(captions.sentences("train")[template])
    for label, indices in images.digit_indices("heldout").items():
        assert len(indices) >= 20
        assert set(indices).isdisjoint(images.digit_indices("train")[label])
    assert set(speech.TRAIN_VOICES).isdisjoint(speech.HELDOUT_VOICES)


def test_every_word_that_is_held_out_somewhere_is_learnt_elsewhere():
    for kind in ("shape", "pair", "music"):
        train, everything = (
            {value for split in splits for item in captions.of_split(kind, split) for value in item.values()}
            for splits in (["train"], captions.SPLITS)
        )
        assert train == everything
    for template, texts in captions.all_sentences().items():
        learnt = {word for text in captions.sentences("train")[template] for word in text.split()}
        assert learnt == {word for text in texts for word in text.split()}


def test_sentences_are_short():
    lengths = {len(text.split()) for texts in captions.all_sentences().values() for text in texts}
    assert lengths <= {3, 4, 5}


def test_pictures_are_64_by_64_and_their_shapes_lie_inside():
    rng = np.random.default_rng(0)
    for attributes in [*captions.all_shapes(), *captions.all_pairs()[::50]]:
        pixels = images.draw(attributes, rng)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all()


@pytest.mark.parametrize("voice", ["en-us", "en-us+f5"])
def test_the_same_words_in_the_same_voice_are_the_same_wave_at_any_time(voice):
    def say(text):
        return speech.synthesise(text, voice, rate=175, pitch=50)

    first = say("a small red circle")
    say("four one nine")
    time.sleep(1.1)  # espeak-ng would seed itself by the second
    np.testing.assert_array_equal(say("a small red circle"), first)


@pytest.mark.parametrize("voice", speech.VOICES)
def test_speech_is_brisk_and_without_long_silence(voice):
    wave = speech.speak("show me a purple triangle", voice, np.random.default_rng(0))
    assert 1.0 < len(wave) / speech.SAMPLE_RATE < 1.7
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    assert loud[0] / speech.SAMPLE_RATE < 0.06
    assert (len(wave) - loud[-1]) / speech.SAMPLE_RATE < 0.06
    assert np.abs(wave).max() == pytest.approx(0.7, abs=1e-3)


def test_music_is_two_seconds_that_never_clip():
    rng = np.random.default_rng(0)
    for attributes in captions.all_music():
        piece = music.render(attributes, rng)
        assert piece.shape == (32_000,) and piece.dtype == np.float32
        assert np.abs(piece).max() == pytest.approx(0.7, abs=1e-3)


def read(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_generation_is_deterministic_and_a_longer_world_begins_with_the_shorter(tmp_path):
    generate(tmp_path / "one", "train", images=6, speech=4, music=2, seed=3)
    generate(tmp_path / "two", "train", images=6, speech=4, music=2, seed=3)
    generate(tmp_path / "long", "train", images=8, speech=5, music=3, seed=3)
    generate(tmp_path / "other", "train", images=6, speech=4, music=2, seed=4)
    one, long = read(tmp_path / "one"), read(tmp_path / "long")
    assert one == read(tmp_path / "two")
    media = [name for name in one if "." in name and not name.endswith(("json", "jsonl"))]
    assert len(media) == 12 and all(one[name] == long[name] for name in media)
    assert one["manifest.jsonl"] != read(tmp_path / "other")["manifest.jsonl"]


def test_a_manifest_names_every_file_with_its_text_and_attributes(tmp_path):
    manifest = generate(tmp_path / "world", "heldout", images=20, speech=4, music=2)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 26
    for row in rows:
        if "image" in row:
            assert Image.open(manifest.parent / row["image"]).size == (64, 64)
        else:
            info = soundfile.info(manifest.parent / (row.get("speech") or row["music"]))
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        if "speech" in row:
            assert any(row["text"] in texts for texts in captions.sentences("heldout").values())
        else:
            assert captions.parse_caption(row["text"]) == row["attributes"]
            assert captions.is_heldout(row["attributes"]) or row["attributes"]["kind"] == "digit"
    voices = [row["attributes"]["voice"] in speech.HELDOUT_VOICES for row in rows if "speech" in row]
    assert voices == [False, True, False, True]


def test_an_interrupted_world_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "world", images=1)
    assert list(tmp_path.iterdir()) == []


def test_another_persons_folder_is_never_replaced(tmp_path):
    (tmp_path / "manifest.jsonl").write_text("{}")
    with pytest.raises(UserError, match="not a small world"):
        generate(tmp_path, images=1)
    assert (tmp_path / "manifest.jsonl").read_text() == "{}"


@pytest.mark.parametrize("flags", [["--out=world"], ["--out=world", "--images=-1"]])
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, flags):
    command = [sys.executable, "-m", "anygpt_jax.smallworld", *flags]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
