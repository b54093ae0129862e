"""SpeechTokenizer and EnCodec: what the originals computed, and batches of different lengths."""

import numpy as np
import pytest
from anygpt_tokenizers import published_programs as programs
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.published_seanet import SeanetSpec, frames_for_samples, samples_for_frames
from audio_signals import margins, sound
from recorded_codecs import CASES, recorded, recorded_codec

HOP = 20


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    return {case: recorded_codec(case, tmp_path_factory.mktemp(case)) for case in CASES}


def clip(length: int, rows: int = 1) -> np.ndarray:
    return sound(rows, length, 16000, seed=3)[:, 0]


@pytest.mark.parametrize("case", CASES)
def test_latents_codes_and_sound_are_the_recorded_originals(codecs, case):
    codec, arrays = codecs[case], recorded(case)
    wave = arrays["wave"].astype(np.float32)[None]
    for name in [name for name in arrays if name.startswith("latents:")]:
        length = int(name.partition(":")[2])
        expected, codes = arrays[name], arrays[f"codes:{length}"].astype(np.int32)
        latents = codec.latents(wave[:, :length])[0]
        error = np.sqrt(np.mean((latents - expected) ** 2) / np.mean(expected**2))
        assert error <= 1e-5, (length, error)
        ours = codec.encode(wave[:, :length], last=codec.spec.quantizers)[0]
        clear = margins(codec.params["quantizer"]["embed"], expected, codes) > 1e-4
        assert clear.mean() > 0.9 and (ours == codes)[clear].all() and (ours == codes).mean() >= 0.999
        np.testing.assert_allclose(codec.decode(codes[None])[0], arrays[f"wave:{length}"], atol=1e-5)


@pytest.mark.parametrize("case", ["speech_snake", "encodec_causal"])
def test_what_training_computes_of_whole_crops_is_what_the_codec_computes(codecs, case):
    codec = codecs[case]
    module, params = codec.module, codec.params
    for length in (7, 9 * HOP + 3):
        wave = clip(length, rows=2)
        latents = programs.latents_of_crops(module, params, wave)
        expected = codec.latents(wave)
        error = np.sqrt(np.mean((latents - expected) ** 2) / np.mean(expected**2))
        assert latents.shape == expected.shape and error <= 1e-5, (length, error)
        codes = codec.encode(wave)
        vectors = module.apply({"params": params}, codes, 0, method="dequantize")
        sounds = programs.decode_crops(module, params, vectors)
        np.testing.assert_allclose(sounds, codec.decode(codes), atol=1e-5)


def test_speechtokenizers_levels_and_semantic_features_are_the_originals(codecs):
    arrays = recorded("speech_snake")
    codec, wave = codecs["speech_snake"], arrays["wave"].astype(np.float32)[None]
    codes = codec.encode(wave, first=1, last=3)
    np.testing.assert_array_equal(codes[0], arrays["codes:levels 1..2"])
    assert (
        codes != codec.encode(wave)[..., 1:]
    ).any()  # level 1 sees the latents here, not what level 0 left
    expected = arrays["wave:levels 1..2"]
    np.testing.assert_allclose(codec.decode(codec.encode(wave)[..., 1:], first=1)[0], expected, atol=1e-5)
    np.testing.assert_allclose(codec.semantic_features(wave)[0], arrays["semantic"], atol=1e-5)


@pytest.mark.parametrize("case", ["speech_elu", "encodec_music"])
def test_clips_of_different_lengths_in_one_batch_give_what_each_gives_alone(codecs, case):
    codec, lengths = codecs[case], [33 * HOP + 3, 1, 12 * HOP, 7 * HOP + 19, 3, 2 * HOP + 1]
    batch = clip(max(lengths), rows=len(lengths))
    latents, codes = codec.latents(batch, lengths), codec.encode(batch, lengths)
    frames = [-(-length // HOP) for length in lengths]
    sounds = codec.decode(codes, frames)
    for row, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        alone = batch[row : row + 1, :length]
        np.testing.assert_allclose(latents[row, :count], codec.latents(alone)[0], atol=2e-6)
        np.testing.assert_array_equal(codes[row, :count], codec.encode(alone)[0])
        assert not codes[row, count:].any() and not sounds[row, count * HOP :].any()
        np.testing.assert_allclose(
            sounds[row, : count * HOP], codec.decode(codes[row : row + 1, :count])[0], atol=1e-6
        )
    many = codec.encode_many([batch[row, :length] for row, length in enumerate(lengths)])
    for row, count in enumerate(frames):
        np.testing.assert_array_equal(many[row], codes[row, :count])


def test_the_published_geometries_see_as_far_as_they_are_known_to():
    speech = SeanetSpec(64, (8, 5, 4, 2), 1024, 8, 1024, bidirectional=True)
    music = SeanetSpec(64, (8, 5, 4, 4), 128, 4, 2048, conv_shortcut=False)
    audio = SeanetSpec(32, (8, 5, 4, 2), 128, 32, 1024, causal=True)
    one_more = 1  # frame in front, for the mirrored end of a clip
    for spec, first, last in [(speech, -243, 554), (music, -482, 1105), (audio, -478, 319)]:
        before, after = samples_for_frames(spec)
        assert (before - one_more * spec.hop_length, after + spec.hop_length - 1) == (-first, last)
    assert [frames_for_samples(spec) for spec in (speech, music, audio)] == [(1, 1), (1, 1), (2, 0)]


def test_impossible_input_is_named(codecs):
    codec, wave = codecs["encodec_music"], clip(3 * HOP)
    codes = codec.encode(wave)
    for where, value in [((0, 2, 1), 32), ((0, 1, 0), -1)]:
        wrong = codes.copy()
        wrong[where] = value
        with pytest.raises(UserError, match=f"frame {where[1]}, level {where[2]} is {value}"):
            codec.decode(wrong)
    with pytest.raises(UserError, match="not \\[1, 3, 5\\]"):
        codec.decode(np.zeros((1, 3, 5), int))
    broken = wave.copy()
    broken[0, 17] = np.nan
    with pytest.raises(UserError, match="Sample 17 of row 0"):
        codec.encode(broken)
    for lengths in ([0], [3 * HOP + 1], [1, 2], [2.5]):
        with pytest.raises(UserError, match="lengths"):
            codec.encode(wave, lengths)
    with pytest.raises(UserError, match=r"Levels 0\.\.8"):
        codec.encode(wave, last=9)
    with pytest.raises(UserError, match="shape"):
        codec.encode(wave[0])


def test_a_clip_that_cannot_be_encoded_costs_no_other(codecs):
    codec, wave = codecs["encodec_music"], clip(3 * HOP)[0]
    broken = np.where(np.arange(len(wave)) == 5, np.inf, wave)
    codes, refused = codec.encode_usable([broken, wave, wave[:0]])
    assert list(refused) == [0, 2]
    np.testing.assert_array_equal(codes, codec.encode(wave[None]))
    with pytest.raises(UserError, match="clip 0 of 3: samples that are not finite"):
        codec.encode_many([broken, wave, wave[:0]])


def test_bandwidths_are_levels(codecs):
    codec = codecs["encodec_music"]
    assert [codec.levels_for(kbps) for kbps in (1.0, 16.0, 24.0)] == [1, 2, 3]
    with pytest.raises(UserError, match="4 levels"):
        codec.levels_for(32.0)
