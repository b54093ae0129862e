"""SpeechTokenizer and EnCodec in pieces, as a stream, and on eight devices: the result is always the same."""

import jax
import numpy as np
import pytest
from anygpt_tokenizers import published_codec
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.long_clips import StreamDecoder, nearby
from audio_signals import sound
from recorded_codecs import recorded_codec

HOP = 20


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    cases = ("speech_elu", "speech_snake", "encodec_causal")
    return {case: recorded_codec(case, tmp_path_factory.mktemp(case)) for case in cases}


def clip(length: int, rows: int = 1) -> np.ndarray:
    return sound(rows, length, 16000, seed=3)[:, 0]


@pytest.mark.parametrize("case", ["speech_elu", "encodec_causal"])
def test_long_clips_in_pieces_give_what_the_whole_gives(codecs, case, monkeypatch):
    codec, lengths = codecs[case], [90 * HOP + 7, 50 * HOP, 31 * HOP + 1]
    batch, frames = clip(max(lengths), rows=3), [91, 50, 32]
    latents, codes = codec.latents(batch, lengths), codec.encode(batch, lengths)
    sounds = codec.decode(codes, frames)
    monkeypatch.setattr(published_codec, "BLOCK", 10)
    monkeypatch.setattr(published_codec, "WHOLE", 30)
    np.testing.assert_allclose(codec.latents(batch, lengths), latents, atol=2e-6)
    np.testing.assert_array_equal(codec.encode(batch, lengths), codes)
    np.testing.assert_allclose(codec.decode(codes, frames), sounds, atol=1e-6)


@pytest.mark.parametrize(("case", "delay"), [("speech_snake", 5), ("encodec_causal", 0)])
def test_a_stream_gives_the_samples_of_decoding_at_once_a_few_frames_later(codecs, case, delay):
    codec = codecs[case]
    codes = codec.encode(clip(40 * HOP, rows=2))
    whole = codec.decode(codes)
    for sizes in ([1] * 40, [3, 1, 17, 2, 17]):
        stream, pieces, at = StreamDecoder(codec, batch=2, step=8), [], 0
        for size in sizes:
            pieces.append(stream.push(codes[:, at : at + size]))
            at += size
            owed = at - sum(piece.shape[1] for piece in pieces) // HOP
            assert owed == delay or at <= 7
        pieces.append(stream.finish())
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)


def test_a_stream_of_one_frame_and_of_none_end_well(codecs):
    codec = codecs["encodec_causal"]
    codes = codec.encode(clip(HOP))
    stream = StreamDecoder(codec, step=8)
    assert stream.push(codes).shape == (1, 0)
    np.testing.assert_allclose(stream.finish(), codec.decode(codes), atol=1e-6)
    assert StreamDecoder(codec).finish().shape == (1, 0)


def test_a_stream_names_codes_that_are_not_its_codecs_and_goes_on_as_if_they_had_not_come(codecs):
    codec = codecs["encodec_causal"]
    codes = codec.encode(clip(12 * HOP, rows=2))
    levels = codes.shape[2]
    stream = StreamDecoder(codec, batch=2, step=8)
    pieces = [stream.push(codes[:, :5])]
    for code in (codec.codebook_size, -1):
        wrong = codes[:, 5:9].copy()
        wrong[1, 2, 1] = code
        with pytest.raises(UserError, match=f"row 1, frame 7, level 1 is {code}"):
            stream.push(wrong)
    for wrong in (codes[0, 5:], codes[:, 5:5], codes.repeat(5, axis=2)):
        with pytest.raises(UserError, match="shape"):
            stream.push(wrong)
    for wrong in (codes[:1, 5:], codes[:, 5:, :1]):
        with pytest.raises(UserError, match=rf"frame 5 with codes of shape \[2, frames, {levels}\]"):
            stream.push(wrong)
    with pytest.raises(UserError, match="whole numbers"):
        stream.push(codes[:, 5:].astype(np.float32))
    pieces += [stream.push(codes[:, 5:]), stream.finish()]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), codec.decode(codes), atol=1e-6)
    with pytest.raises(UserError, match="finished"):
        stream.push(codes)


def test_a_stream_that_could_not_go_right_is_not_begun(codecs):
    codec = codecs["encodec_causal"]
    for block in (4, 0, 20):
        with pytest.raises(UserError, match="must divide its step of 10"):
            StreamDecoder(codec, step=10, block=block)
    codes = codec.encode(clip(23 * HOP))
    stream = StreamDecoder(codec, step=10, block=5)
    pieces = [stream.push(codes), stream.finish()]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), codec.decode(codes), atol=1e-6)
    for lengths in ([3], [3, 0], [3.0, 4.0]):
        with pytest.raises(UserError, match="2 whole numbers of frames"):
            StreamDecoder(codec, batch=2, lengths=lengths)
    for first in (-1, 99):
        with pytest.raises(UserError, match=f"first level .* not {first}"):
            StreamDecoder(codec, first=first).push(codes)


def test_eight_devices_give_the_codes_and_sound_of_one(codecs, tmp_path):
    codec, lengths = codecs["speech_elu"], [9 * HOP, 5, 12 * HOP + 7, 33, 8 * HOP, 6 * HOP]
    batch = clip(max(lengths), rows=len(lengths))
    codes = codec.encode(batch, lengths)
    sounds = codec.decode(codes)
    codec.save_pretrained(tmp_path)
    spread = load_codec(tmp_path).on_mesh(jax.make_mesh((8,), ("data",)))
    np.testing.assert_array_equal(spread.encode(batch, lengths), codes)
    np.testing.assert_allclose(spread.decode(codes), sounds, atol=1e-6)
    assert len(spread.place(np.zeros((8, 2))).sharding.device_set) == 8


def test_positions_stay_small_however_long_the_audio_is():
    start, lengths = nearby(10**9, np.array([10**9 + 3, 10**9 - 5, 1 << 40]), 1)
    assert start == 64 and lengths.tolist() == [67, 59, 1 << 20]
    assert nearby(3, np.array([2000]), 640)[1].tolist() == [2000]
