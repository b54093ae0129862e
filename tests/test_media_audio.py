"""Reading sound files: whatever rate and channels come in, and one reason for what cannot be used."""

import math
import tracemalloc

import numpy as np
import pytest
import soundfile
from anygpt_tokenizers import media_audio
from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.media_audio import prepare_audio, read_audio, write_audio
from anygpt_tokenizers.resampling import Resampler

RATE = 16_000


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_is_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    wave = read_audio(tmp_path / "a.wav", RATE)
    assert wave.dtype == np.float32 and abs(len(wave) - RATE) <= 1
    assert np.abs(wave - tone(RATE)[: len(wave)])[800:-800].max() < 0.01


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(RATE), np.zeros(RATE)], 1), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), tone(RATE) / 2, atol=1e-3)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_other_formats_are_read(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(RATE), RATE)
    assert len(read_audio(tmp_path / f"a.{suffix}", RATE)) >= RATE


@pytest.mark.parametrize(("suffix", "missing"), [("wav", 64), ("flac", 4096), ("ogg", 24_000)])
@pytest.mark.parametrize("block", [1 << 18, 5000])
def test_of_a_truncated_file_the_part_that_is_there_is_read(tmp_path, monkeypatch, suffix, missing, block):
    monkeypatch.setattr(media_audio, "BLOCK", block)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 10 * RATE)  # so that all seconds take as many bytes
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise, RATE)
    whole, data = read_audio(path, RATE), path.read_bytes()
    for part in (0.3, 0.5, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        wave = read_audio(path, RATE)
        assert part * len(whole) - missing <= len(wave) <= part * len(whole) + missing
        np.testing.assert_array_equal(wave, whole[: len(wave)])


def test_unusable_files_have_a_reason(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not sound")
    (tmp_path / "bare.raw").write_bytes(bytes(range(200)))
    soundfile.write(tmp_path / "cut.flac", tone(RATE), RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:200])
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    reasons = {
        "absent.wav": "missing file",
        "empty.wav": "empty file",
        "text.wav": "not a readable sound file",
        "bare.raw": "not a readable sound file",
        "cut.flac": "not a readable sound file",
        "none.wav": "no samples",
        "silent.wav": "silent",
        "nan.wav": "samples that are not finite",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError) as caught:
            read_audio(tmp_path / name, RATE)
        assert caught.value.reason == reason
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_written_is_read_back(tmp_path):
    write_audio(tone(RATE), tmp_path / "a.wav", RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), tone(RATE), atol=1e-4)


def torchaudios_rule(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """torchaudio's resampling in float64: a Hann-windowed sinc of width 6 with a roll-off of 0.99."""
    old, new = rate // math.gcd(rate, new_rate), new_rate // math.gcd(rate, new_rate)
    base = min(old, new) * 0.99
    width = math.ceil(6 * old / base)
    time = -np.arange(new)[:, None] / new + np.arange(-width, width + old) / old
    time = np.clip(time * base, -6, 6)
    taps = np.sinc(time) * np.cos(np.pi * time / 12) ** 2 * base / old
    padded = np.pad(wave.astype(np.float64), (width, width + old))
    stretches = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + old)[::old]
    return (stretches @ taps.T).reshape(-1)[: math.ceil(new * len(wave) / old)]


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_resampling_is_torchaudios_rule_within_a_millionth_up_to_the_highest_frequencies(rate):
    count = rate // 4 + 3
    waves = [
        0.3 * np.sin(2 * np.pi * pitch * np.arange(count) / rate)
        for pitch in (100, 300, 1000, 2000, 3000, 4000, 5000, 6000, 6500, 7000, 7500, 7900)
        if 2 * pitch < rate
    ]
    for wave in [*waves, np.random.default_rng(0).uniform(-0.3, 0.3, count), np.full(1, 0.3), np.ones(7) / 2]:
        ours, theirs = prepare_audio(wave, rate, RATE), torchaudios_rule(wave, rate, RATE)
        assert ours.dtype == np.float32 and len(ours) == len(theirs) == math.ceil(len(wave) * RATE / rate)
        assert np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize(("rate", "new_rate"), [(44_100, RATE), (16_001, RATE), (RATE, 48_000), (3, 7)])
def test_resampling_in_pieces_gives_what_the_whole_gives(rate, new_rate):
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.5, 0.5, (40_000, 2))
    resampler, pieces, at = Resampler(rate, new_rate, 2), [], 0
    while at < len(wave):
        size = int(rng.integers(1, 9000))
        pieces.append(resampler.add(wave[at : at + size]))
        at += size
    joined = np.concatenate([*pieces, resampler.finish()])
    for channel in range(2):
        whole = Resampler(rate, new_rate, 1)
        alone = np.concatenate([whole.add(wave[:, channel : channel + 1]), whole.finish()])[:, 0]
        np.testing.assert_allclose(joined[:, channel], alone, atol=1e-7)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_any_bit_depth_is_read(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE, subtype=subtype)
    coarse = subtype in ("PCM_U8", "ULAW")
    np.testing.assert_allclose(
        read_audio(tmp_path / "a.wav", RATE), tone(RATE), atol=0.02 if coarse else 1e-4
    )


@pytest.mark.parametrize("suffix", ["aiff", "au", "caf", "w64", "rf64"])
def test_other_containers_are_read(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([tone(RATE)] * 6, 1), RATE, subtype="PCM_16")
    np.testing.assert_allclose(read_audio(tmp_path / f"a.{suffix}", RATE), tone(RATE), atol=1e-4)


def test_offset_clipping_and_ten_milliseconds_are_sound(tmp_path):
    soundfile.write(tmp_path / "offset.wav", np.full(RATE, 0.3), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "offset.wav", RATE), 0.3, atol=1e-4)
    soundfile.write(tmp_path / "loud.wav", 5 * tone(RATE), RATE, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "loud.wav", RATE)).max() == 1.0
    for rate in (8_000, RATE, 48_000):
        soundfile.write(tmp_path / "short.wav", tone(rate, 0.01), rate)
        assert len(read_audio(tmp_path / "short.wav", RATE)) == 160


def test_a_sample_that_is_no_number_is_found_anywhere(tmp_path):
    wave = np.zeros((400_000, 2), np.float32)
    wave[:, 0] = 0.1
    wave[350_000, 1] = np.inf
    soundfile.write(tmp_path / "a.wav", wave, 44_100, subtype="FLOAT")
    with pytest.raises(MediaError, match="not finite"):
        read_audio(tmp_path / "a.wav", RATE)


def test_a_long_file_is_never_in_memory_as_a_whole(tmp_path):
    seconds, channels = 60, 8
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 48_000, channels, "PCM_U8") as file:
        second = np.repeat(tone(48_000)[:, None], channels, 1)
        for _ in range(seconds):
            file.write(second)
    tracemalloc.start()
    wave = read_audio(tmp_path / "a.wav", RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(wave) == seconds * RATE
    whole = 4 * 48_000 * seconds * channels  # 92 MB as float32
    assert peak < 2.5 * wave.nbytes + 8e6 < whole / 4


def test_a_header_that_claims_hours_costs_no_memory(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(RATE), RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21:26] = bytes([data[21] | 15]) + b"\xff" * 4  # the number of samples, 36 bits
    (tmp_path / "a.flac").write_bytes(data)
    tracemalloc.start()
    try:
        assert len(read_audio(tmp_path / "a.flac", RATE)) <= 2 * RATE
    except MediaError as error:
        assert error.reason == "not a readable sound file"
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff"])
def test_damaged_headers_give_sound_or_one_reason(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(RATE, 0.2), RATE)
    original, rng = (tmp_path / f"a.{suffix}").read_bytes(), np.random.default_rng(0)
    reasons = set()
    for _ in range(60):
        data = bytearray(original)
        for place in rng.integers(0, 60, 3):
            data[place] = rng.integers(256)
        (tmp_path / f"b.{suffix}").write_bytes(data)
        try:
            wave = read_audio(tmp_path / f"b.{suffix}", RATE)
            assert np.isfinite(wave).all() and wave.ndim == 1
        except MediaError as error:
            reasons.add(error.reason)
    assert reasons


def test_an_impossible_rate_is_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(RATE), 7)
    with pytest.raises(MediaError, match=r"impossible sample rate \(7 Hz\)"):
        read_audio(tmp_path / "a.wav", RATE)
