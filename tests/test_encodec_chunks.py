"""EnCodec's chunks and scales without the original: layouts, loudness, mistakes."""

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.encodec_chunks import Chunking, loudness, overlap_add
from anygpt_tokenizers.media_audio import read_audio, write_audio
from audio_signals import sound
from recorded_codecs import import_checkpoint, write_checkpoint

PUBLISHED = Chunking(48_000, 47_520, 320)
CHUNKED = {"normalize": True, "chunk_length_s": 0.01, "overlap": 0.1}
LENGTH, STRIDE = 320, 288


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunked")
    write_checkpoint("encodec_music", folder / "checkpoint", lambda state, config: config.update(CHUNKED))
    import_checkpoint("encodec_music", folder / "checkpoint", folder / "codec")
    return load_codec(folder / "codec")


@pytest.mark.parametrize("chunking", [PUBLISHED, Chunking(960, 864, 32), Chunking(100, 30, 7)])
def test_frames_and_the_number_of_chunks_say_where_chunks_begin(chunking):
    near = [
        k * chunking.stride + i for k in (1, 2, 5) for i in range(-3, chunking.length - chunking.stride + 3)
    ]
    for samples in [1, 2, chunking.hop, *near]:
        frames = chunking.frames(samples)
        assert frames.tolist() == chunking.split(frames.sum(), len(frames)).tolist()
    for total, count in [(0, 1), (-(-chunking.length // chunking.hop) + 1, 1), (1, 2)]:
        with pytest.raises(UserError, match=f"{total} frames in {count} chunks"):
            chunking.split(total, count)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_overlapping_chunks_of_a_sound_add_up_to_the_sound(channels):
    wave = np.random.default_rng(0).normal(size=(1000, *channels)).astype(np.float32)
    for chunking in (Chunking(100, 90, 1), Chunking(100, 30, 1), Chunking(2000, 1900, 1)):
        chunks = [wave[start:end] for start, end in chunking.places(len(wave))]
        np.testing.assert_allclose(overlap_add(chunks, chunking.stride), wave, atol=1e-6)


def test_a_louder_sound_has_the_same_codes_and_larger_scales(codec):
    lengths = [3 * STRIDE + 7, 11, LENGTH]
    wave = sound(3, max(lengths), 32_000)[:, 0]
    codes, scales, frames = codec.encode_scaled(wave, lengths)
    assert (scales > 0).sum(1).tolist() == [4, 1, 2] and frames.tolist() == [16 + 16 + 15 + 1, 1, 16 + 2]
    assert codes.shape == (3, 48, codec.num_codebooks) and not codes[1, 1:].any()
    np.testing.assert_allclose(scales[0, 1], loudness(wave[0, STRIDE : STRIDE + LENGTH]))
    louder = codec.encode_scaled(4 * wave, lengths)
    np.testing.assert_array_equal(louder.codes, codes)
    np.testing.assert_allclose(louder.scales, 4 * scales, rtol=1e-6)
    again = codec.decode(codes, frames, scales=scales)
    np.testing.assert_allclose(codec.decode(codes, frames, scales=4 * scales), 4 * again, rtol=1e-5)
    assert not again[1, 20:].any() and again[0].std() > 1e-3
    silence = codec.encode_scaled(np.zeros((1, LENGTH), np.float32))
    assert np.abs(codec.decode(silence.codes, scales=silence.scales)).max() < 1e-6


def test_scales_that_are_missing_or_impossible_are_named(codec):
    wave = sound(1, LENGTH, 32_000)[:, 0]
    with pytest.raises(UserError, match="encode_scaled"):
        codec.encode(wave)
    with pytest.raises(UserError, match="encode_scaled"):
        codec.encode_many([wave[0]])
    codes = np.zeros((1, 16, codec.num_codebooks), int)
    with pytest.raises(UserError, match="scales=…"):
        codec.decode(codes)
    for scales in (np.zeros((1, 1)), np.ones(1), -np.ones((1, 1)), np.full((1, 1), np.nan), np.ones((2, 1))):
        with pytest.raises(UserError, match="`scales`"):
            codec.decode(codes, scales=scales)
    with pytest.raises(UserError, match="16 frames in 3 chunks"):
        codec.decode(codes, scales=np.ones((1, 3)))


def test_a_codec_without_scales_refuses_them_and_one_with_time_norms_refuses_streams(tmp_path):
    from anygpt_tokenizers.encodec import Encodec
    from anygpt_tokenizers.long_clips import StreamDecoder

    write_checkpoint("encodec_music", tmp_path / "checkpoint")
    plain = import_checkpoint("encodec_music", tmp_path / "checkpoint", tmp_path / "codec")
    with pytest.raises(UserError, match="no scales"):
        plain.decode(np.zeros((1, 2, 1), int), scales=np.ones((1, 1), np.float32))
    normed = Encodec({**plain.config, "time_group_norm": True}, plain.params)
    with pytest.raises(UserError, match="streamed"):
        StreamDecoder(normed)
    with pytest.raises(UserError, match="shorter clips"):
        normed.encode(np.zeros((1, 3001 * normed.hop_length), np.float32))


def test_stereo_is_kept_where_it_is_wanted_and_mono_is_copied(tmp_path):
    wave = sound(2, 4801, 48_000)[:, 0].T * 0.5
    write_audio(wave, tmp_path / "two.wav", 48_000)
    write_audio(wave[:, 0], tmp_path / "one.wav", 48_000)
    stereo = read_audio(tmp_path / "two.wav", 48_000, 2)
    np.testing.assert_allclose(stereo, wave, atol=1e-4)
    halved = read_audio(tmp_path / "two.wav", 24_000, 2)
    assert halved.shape == (2401, 2)
    np.testing.assert_allclose(halved.mean(1), read_audio(tmp_path / "two.wav", 24_000), atol=1e-4)
    copied = read_audio(tmp_path / "one.wav", 48_000, 2)
    np.testing.assert_array_equal(copied[:, 0], copied[:, 1])
