"""Level 0 of SpeechTokenizer spoken through SoundStorm, in a voice of one's own if there is a prompt."""

import dataclasses

import fake_model
import jax
import numpy as np
import pytest
import random_llama
import safetensors.numpy
import soundfile
from anygpt_tokenizers import cli, codec
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.soundstorm import Options, SoundStorm
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from anygpt_tokenizers.soundstorm_training import SoundStormTraining
from audio_signals import sound
from recorded_codecs import import_checkpoint, write_checkpoint
from soundstorm_states import random_state

from anygpt_jax.checkpoint import load_model
from anygpt_jax.convert import import_hf
from anygpt_jax.sampling.generator import Generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SpeechTokenizer whose tokens are level 0, and an imported SoundStorm below it."""
    folder = tmp_path_factory.mktemp("speaking")
    write_checkpoint("speech_snake", folder / "checkpoint")
    tokenizer = import_checkpoint("speech_snake", folder / "checkpoint", folder / "codec", num_codebooks=1)
    add_soundstorm(folder, tokenizer.codebook_size, tokenizer.spec.quantizers - 1, folder / "codec")
    soundfile.write(folder / "voice.wav", sound(1, 3000, 16000, seed=5)[0, 0], 16000)
    return folder


@pytest.fixture(scope="module")
def speaking(folder):
    return codec.load_codec(folder / "codec")


def add_soundstorm(folder, size: int, levels: int, directory) -> None:
    state = random_state(dim=8, depth=1, heads_width=8, levels=levels, codes=size, semantic=size)
    safetensors.numpy.save_file(state, folder / "soundstorm.safetensors")
    import_soundstorm(folder / "soundstorm.safetensors", directory / "soundstorm", heads=2)


def semantic_codes(tokenizer, frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, tokenizer.codebook_size, (2, frames, 1))


def test_level_0_is_filled_up_as_the_published_model_does(speaking):
    assert speaking.soundstorm.options == Options(steps=3, mode="reference")
    codes = semantic_codes(speaking, 12)[:1]
    filled = speaking.soundstorm.generate(codes[..., 0])
    assert (filled[..., 1:] > 0).any()
    np.testing.assert_allclose(speaking.decode(codes), speaking.decode(filled), atol=1e-6)
    plain = np.concatenate([codes, np.zeros_like(filled[..., 1:])], -1)
    assert np.abs(speaking.decode(codes) - speaking.decode(plain)).max() > 1e-3


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_rows_of_different_lengths_sound_as_they_do_alone(folder, speaking, monkeypatch, mode):
    monkeypatch.setattr(speaking.soundstorm, "options", Options(steps=3, mode=mode))
    codes, hop = semantic_codes(speaking, 12), speaking.hop_length
    voice = speaking.encode_voice(folder / "voice.wav")
    together = speaking.decode(codes, [12, 7], voice=voice)
    np.testing.assert_allclose(together[:1], speaking.decode(codes[:1], voice=voice), atol=1e-5)
    np.testing.assert_allclose(
        together[1:, : 7 * hop], speaking.decode(codes[1:, :7], voice=voice), atol=1e-5
    )
    assert not together[1, 7 * hop :].any()


def test_a_voice_changes_how_it_sounds_and_nothing_of_what_is_said(folder, speaking):
    voice = speaking.encode_voice(folder / "voice.wav")
    assert voice.shape[1] == speaking.spec.quantizers
    codes = semantic_codes(speaking, 12)
    assert np.abs(speaking.decode(codes, voice=voice) - speaking.decode(codes)).max() > 1e-3
    filled = speaking.soundstorm.generate(codes[..., 0], np.stack([voice, voice]))
    np.testing.assert_array_equal(filled[..., :1], codes)
    with pytest.raises(UserError, match="Give level 0 alone"):
        speaking.decode(filled, voice=voice)


def test_a_copy_has_the_same_soundstorm(speaking, tmp_path):
    speaking.save_pretrained(tmp_path)
    again = codec.load_codec(tmp_path)
    assert again.hash == speaking.hash and again.config == speaking.config
    assert again.soundstorm.spec == speaking.soundstorm.spec
    assert again.soundstorm.options == speaking.soundstorm.options
    jax.tree.map(np.testing.assert_array_equal, again.soundstorm.params, speaking.soundstorm.params)


def test_a_newly_trained_soundstorm_decodes_in_the_corrected_mode(speaking, tmp_path):
    SoundStorm(speaking.soundstorm.spec, speaking.soundstorm.params).save_pretrained(tmp_path)
    assert SoundStorm.from_pretrained(tmp_path).options == Options()


def test_without_a_soundstorm_level_0_sounds_as_it_is_and_no_voice_is_followed(folder, tmp_path):
    silent = import_checkpoint("speech_snake", folder / "checkpoint", tmp_path / "alone", num_codebooks=1)
    codes = semantic_codes(silent, 12)
    silent.check_decodable()
    assert silent.decode(codes).any()
    voice = np.zeros((5, silent.spec.quantizers), np.int32)
    with pytest.raises(UserError, match="follows no voice: there is no SoundStorm in soundstorm/"):
        silent.decode(codes, voice=voice)
    whole = import_checkpoint("speech_snake", folder / "checkpoint", tmp_path / "whole")
    add_soundstorm(tmp_path, whole.codebook_size, whole.spec.quantizers - 1, tmp_path / "whole")
    with pytest.raises(UserError, match=f"its tokens are {whole.num_codebooks} levels"):
        whole.decode(np.zeros((1, 4, whole.num_codebooks), np.int32), voice=voice)


def test_a_soundstorm_of_other_sizes_is_named(folder, tmp_path):
    other = import_checkpoint("speech_snake", folder / "checkpoint", tmp_path / "codec", num_codebooks=1)
    add_soundstorm(tmp_path, other.codebook_size + 1, other.spec.quantizers - 1, tmp_path / "codec")
    read = codec.load_codec(tmp_path / "codec")
    for ask in (read.check_decodable, lambda: read.decode(semantic_codes(other, 4))):
        with pytest.raises(UserError, match="this codec has"):
            ask()


def test_soundstorm_learns_all_levels_of_what_its_codec_hears(folder, speaking, capsys):
    (folder / "manifest.jsonl").write_text('{"speech": "silent.wav"}\n{"speech": "voice.wav"}\n')
    soundfile.write(folder / "silent.wav", np.zeros(1600), 16000)
    config = cli.load_config("configs/soundstorm.py:dummy").unlock()
    size = speaking.codebook_size
    config.net.update(levels=speaking.spec.quantizers - 1, codebook_size=size, semantic_size=size)
    config.codes.codec = str(folder / "codec")
    (codes,) = SoundStormTraining(config).read_examples(folder)
    np.testing.assert_array_equal(codes, speaking.encode_voice(folder / "voice.wav"))
    assert "left out: 1 of 2 files" in capsys.readouterr().err
    for name, other in [("levels", -1), ("codebook_size", 1), ("semantic_size", 1)]:
        unlike = config.copy_and_resolve_references()
        unlike.net[name] += other
        with pytest.raises(UserError, match=f"{name} {unlike.net[name]}.* asks for"):
            SoundStormTraining(unlike).read_examples(folder)
        with pytest.raises(UserError, match="asks for"):
            SoundStormTraining(unlike).init(jax.random.key(0), [])
    config.codes.codec = str(codec.SHIPPED / "speech")
    with pytest.raises(UserError, match="holds a seanet; SoundStorm learns"):
        SoundStormTraining(config).read_examples(folder)


def test_a_request_is_spoken_in_the_voice_of_a_file(folder, speaking, tmp_path):
    model = fake_model.load()
    generator = Generator(dataclasses.replace(model, codecs={**model.codecs, "speech": speaking}))
    line = "text|speech|a small red circle"
    plain = generator.run(line, tmp_path, budget=8)
    voiced = generator.run(f"{line}|{folder / 'voice.wav'}", tmp_path, budget=8)
    np.testing.assert_array_equal(plain.codes, voiced.codes)
    sounds = [soundfile.read(answer.path)[0] for answer in (plain, voiced)]
    assert sounds[0].shape == sounds[1].shape and np.abs(sounds[0] - sounds[1]).max() > 1e-3
    assert voiced.path.name.startswith("a_small_red_circle--voice--")


def test_a_model_imported_from_published_files_speaks_and_takes_a_voice(folder, tmp_path):
    def with_1024_codes(state, config):
        rng = np.random.default_rng(0)
        for key, value in state.items():
            if "_codebook" in key and value.shape[:1] == (config["codebook_size"],):
                state[key] = rng.normal(size=(1024, *value.shape[1:])).astype(np.float32)
        config["codebook_size"] = 1024

    vocabulary = random_llama.media_vocabulary()
    random_llama.write_llama(tmp_path / "hf", vocabulary, random_llama.decoder_config(vocabulary))
    import_hf(tmp_path / "hf", tmp_path / "model")
    write_checkpoint("speech_snake", tmp_path / "checkpoint", with_1024_codes)
    speech = tmp_path / "model" / "codecs" / "speech"
    tokenizer = import_checkpoint("speech_snake", tmp_path / "checkpoint", speech, num_codebooks=1)
    add_soundstorm(tmp_path, 1024, tokenizer.spec.quantizers - 1, speech)
    generator = Generator(load_model(tmp_path / "model"))
    answer = generator.run(f"text|speech|good morning|{folder / 'voice.wav'}", tmp_path, budget=12)
    wave, rate = soundfile.read(answer.path)
    assert rate == tokenizer.sample_rate and len(wave) == len(answer.codes) * tokenizer.hop_length
    assert np.abs(wave).max() > 0 and answer.codes.shape[1] == 1
