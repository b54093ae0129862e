"""The judges agree with the real data, clean and a little worn, and reject what is not of this world."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from anygpt_jax.smallworld import captions, judges, music_judge, speech, speech_judge
from anygpt_jax.smallworld.generate import generate

AUDIO_RATE = judges.SAMPLE_RATE


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds") / "heldout"
    generate(folder, "heldout", images=60, speech=24, music=16, seed=1)
    return folder


def worn(modality, media):
    """What a codec might do: blur and noise in pictures, noise in sound."""
    rng = np.random.default_rng(0)
    if modality == "image":
        noisy = gaussian_filter(media.astype(np.float32), (1, 1, 0)) + rng.normal(0, 10, media.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)
    return media + 0.003 * rng.standard_normal(len(media))


@pytest.mark.parametrize("reconstruct", [None, worn])
def test_real_data_passes_the_judges_clean_and_worn(world, reconstruct):
    result = judges.ceilings(world, reconstruct=reconstruct)
    assert {direction: entry["n"] for direction, entry in result.items()} == {
        "text->image": 60,
        "text->speech": 24,
        "text->music": 16,
    }
    assert result["text->image"]["score"] >= 0.98
    assert result["text->speech"]["score"] <= 0.05
    assert result["text->music"]["score"] >= 0.97


@pytest.mark.parametrize("modality", ["image", "speech", "music"])
def test_the_true_text_gets_the_full_score_and_another_does_not(world, modality):
    rows = judges.load_rows(world, modality)
    direction = f"{modality}->text"
    best = judges.mean_score(direction, [judges.score(direction, row, row["text"]) for row in rows])
    other = judges.mean_score(direction, [judges.score(direction, row, "what?") for row in rows])
    assert (best, other) == ((0.0, 1.0) if modality == "speech" else (1.0, 0.0))


def test_the_converse_caption_of_a_pair_is_right_too():
    row = {"attributes": captions.parse_caption("a small red circle above a large blue square")}
    assert judges.score("image->text", row, "a large blue square below a small red circle") == 1.0
    assert judges.score("image->text", row, "a large blue square above a small red circle") == 0.0
    assert judges.score("image->text", row, "a small red circle") == 0.0


def test_word_errors_are_the_fewest_edits():
    assert judges.word_errors("four one nine", "four one nine") == (0, 3)
    assert judges.word_errors("four one nine", "one nine") == (1, 3)
    assert judges.word_errors("four one nine", "four one one nine") == (1, 3)
    assert judges.word_errors("four one nine", "") == (3, 3)
    assert judges.word_errors("draw a red circle", "paint a circle red") == (3, 4)
    assert judges.mean_score("speech->text", [(0, 3), (2, 5)]) == 0.25


def test_blank_and_noisy_pictures_show_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for picture in (np.full((64, 64, 3), 255, np.uint8), noise):
        assert judges.judge_image(picture) == {"kind": "unknown"}


def test_a_blob_that_is_no_shape_is_not_called_one():
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[30:34, 10:54] = (220, 35, 40)
    assert judges.judge_image(picture)["shape"] == "unknown"


def test_silence_says_nothing_and_plays_nothing():
    silence = np.zeros(AUDIO_RATE, np.float32)
    assert judges.judge_speech(silence, AUDIO_RATE) == ""
    assert judges.judge_speech(silence[:10], AUDIO_RATE) == ""
    assert judges.judge_music(silence, AUDIO_RATE) == {"kind": "unknown"}
    row = {"attributes": captions.all_music()[0]}
    assert judges.score("text->music", row, silence) == 0.0


def test_a_verdict_on_speech_does_not_depend_on_what_was_heard_before():
    rng = np.random.default_rng(0)
    waves = [speech.speak(text, "emma", rng) for text in ("four one nine", "play a slow flute tune")]
    first = judges.judge_speech(waves[0], AUDIO_RATE)
    judges.judge_speech(0.01 * waves[1], AUDIO_RATE)
    assert judges.judge_speech(waves[0], AUDIO_RATE) == first == "four one nine"


def test_the_grammar_has_every_word_that_is_spoken():
    rules = set(speech_judge.grammar().replace("(", " ").replace(")", " ").replace(";", " ").split())
    spoken = {word for texts in captions.all_sentences().values() for text in texts for word in text.split()}
    assert spoken <= rules


def test_music_at_another_sample_rate_is_judged_alike(world):
    row = judges.load_rows(world, "music", limit=1)[0]
    wave = judges.load_media(world, row, "music")
    doubled = np.repeat(wave, 2)
    assert music_judge.judge_music(doubled, 2 * AUDIO_RATE) == row["attributes"]
