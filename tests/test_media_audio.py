"""Reading sound files: whatever rate and channels come in, and one reason for what cannot be used."""

import numpy as np
import pytest
import soundfile
from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.media_audio import read_audio, write_audio

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


def test_of_a_truncated_file_the_part_that_is_there_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    assert len(read_audio(tmp_path / "a.wav", RATE)) == pytest.approx(RATE / 2, abs=64)


def test_unusable_files_have_a_reason(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not sound")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    reasons = {
        "absent.wav": "missing file",
        "empty.wav": "empty file",
        "text.wav": "not a readable sound file",
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
