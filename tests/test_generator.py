"""Requests: six directions, reproducible, written to files, and mistakes answered in one sentence."""

import fake_model
import numpy as np
import pytest
import soundfile
from anygpt_tokenizers.cli import UserError
from PIL import Image

from anygpt_jax.sampling.generator import Generator, decode_many
from anygpt_jax.sampling.sampler import Decoding


@pytest.fixture(scope="module")
def generator():
    return Generator(fake_model.load(), batch_size=4)


@pytest.fixture
def media(tmp_path):
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "picture.png")
    for name in ("speech", "music"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.sin(np.arange(16000) / 9), 16000)
    return tmp_path


def test_text_to_each_medium_gives_codes_that_decode(generator):
    for modality, codec in fake_model.CODECS.items():
        answers = generator.generate(f"text->{modality}", ["a small red circle", "a handwritten seven"])
        for codes in answers:
            assert codes.shape[1] == codec.num_codebooks and len(codes) >= 1
            assert codes.min() >= 0 and codes.max() < codec.codebook_size
            assert len(codes) == (codec.fixed_frames or len(codes))
        assert len(generator.decode(modality, answers)) == 2


def test_each_medium_to_text_gives_text_without_a_trace_of_codes(generator):
    for modality, codec in fake_model.CODECS.items():
        codes = np.zeros((codec.fixed_frames or 12, codec.num_codebooks), np.int32)
        (answer,) = generator.generate(f"{modality}->text", [codes], budget=20)
        assert isinstance(answer, str)
        for control in ("<eos>", "<so", "[Human]", "</s>"):
            assert control not in answer


def test_an_answer_depends_on_seed_index_and_content_but_not_on_the_batch_size(generator):
    contents = [f"draw the number {word}" for word in ("one", "two", "three", "four", "five")]
    together = generator.generate("text->image", contents, seed=3)
    in_twos = Generator(generator.model, batch_size=2).generate("text->image", contents, seed=3)
    for a, b in zip(together, in_twos, strict=True):
        np.testing.assert_array_equal(a, b)
    other = generator.generate("text->image", contents, seed=4)
    assert any((a != b).any() for a, b in zip(together, other, strict=True))


def test_greedy_answers_do_not_depend_on_the_seed_given_an_instruction(generator):
    settings = {"decoding": Decoding(temperature=0.0), "instruction": "Draw this."}
    answers = [generator.generate("text->image", ["a red circle"], seed, **settings)[0] for seed in (0, 1)]
    np.testing.assert_array_equal(*answers)


def test_a_budget_shortens_sound_and_is_refused_where_an_image_cannot_fit(generator):
    (codes,) = generator.generate("text->music", ["a slow piano tune"], budget=7)
    assert len(codes) <= 3
    with pytest.raises(UserError, match="too small for image"):
        generator.generate("text->image", ["a red circle"], budget=32)


def test_decode_many_keeps_the_order_of_mixed_lengths():
    codec = fake_model.CODECS["speech"]
    codes = [np.full((length, 1), value, np.int32) for length, value in ((5, 1), (3, 2), (5, 3), (4, 4))]
    waves = decode_many(codec, codes)
    for wave, item in zip(waves, codes, strict=True):
        np.testing.assert_array_equal(wave, codec.decode(item[None])[0])


@pytest.mark.parametrize(
    "line", ["text|image|a small red circle", "text|speech|one/two: three", "text|music|a tune|"]
)
def test_requests_for_media_are_written_to_readable_files(generator, tmp_path, line):
    answers = [generator.run(line, tmp_path / "out") for _ in range(2)]
    assert answers[0].path != answers[1].path
    for answer in answers:
        assert answer.path.parent == tmp_path / "out"
        if answer.path.suffix == ".png":
            assert Image.open(answer.path).size == (64, 64)
        else:
            assert soundfile.info(answer.path).samplerate == 16000


@pytest.mark.parametrize("name", ["image|text|picture.png", "speech|text|speech.wav", "music|text|music.wav"])
def test_requests_for_text_read_files(generator, media, name):
    source, target, file = name.split("|")
    answer = generator.run(f"{source}|{target}|{media / file}", media / "out", budget=20)
    assert isinstance(answer.text, str) and answer.path is None


def test_what_no_codec_can_decode_is_refused_before_it_is_generated(generator, monkeypatch, tmp_path):
    def refuse(codec):
        raise UserError("this codec has no decoder")

    monkeypatch.setattr(fake_model.NoiseImages, "check_decodable", refuse)
    monkeypatch.setattr(Generator, "generate", lambda *_, **__: pytest.fail("it was generated"))
    with pytest.raises(UserError, match="has no decoder"):
        generator.run("text|image|a small red circle", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("text|image", "2 fields"),
        ("text|speech|hello|voice.wav|more", "5 fields"),
        ("text|speech|hello|voice.wav", "no file 'voice.wav' to take the voice from"),
        ("text|image|hello|voice.wav", "only text|speech requests"),
        ("text|smell|roses", "does not know 'smell'"),
        ("text|text|hello", "not a pair"),
        ("image|speech|a.png", "not a pair"),
        ("text|image| ", "no content"),
        ("image|text|nowhere.png", "no file 'nowhere.png'"),
    ],
)
def test_mistakes_are_named_in_one_sentence(generator, tmp_path, line, message):
    with pytest.raises(UserError, match=message) as error:
        generator.run(line, tmp_path)
    assert "\n" not in str(error.value)
