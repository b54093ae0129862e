"""The commands `tokenize` and `pack` on small codecs: files in, batches out; mistakes cost one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from random_codecs import save_random_codecs

from anygpt_jax.data.pipeline import PackedData

ROOT = Path(__file__).parents[1]
REAL_MEDIA = ROOT.parent / "shared" / "data" / "infer"


@pytest.fixture(scope="module")
def codec_flags(tmp_path_factory):
    return save_random_codecs(tmp_path_factory.mktemp("codecs"))


def command(name, *arguments):
    program = [sys.executable, "-m", f"anygpt_jax.{name}", "--config=configs/tiny.py", *map(str, arguments)]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)


def tokenize_and_pack(folder, rows, codec_flags):
    """Runs both commands; returns the tokeniser's result and the packed data."""
    manifest, tokens, packed = folder / "manifest.jsonl", folder / "tokens", folder / "packed"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    tokenized = command("tokenize", f"--manifest={manifest}", f"--out={tokens}", *codec_flags)
    assert tokenized.returncode == 0, tokenized.stderr
    result = command("pack", f"--tokens={tokens}", f"--out={packed}", "--config.pack.repeats=2", *codec_flags)
    assert result.returncode == 0, result.stderr
    return tokenized, PackedData(packed, batch_size=4)


def test_media_files_become_batches(tmp_path, codec_flags):
    Image.new("RGBA", (300, 100), (255, 0, 0, 128)).save(tmp_path / "red.png")
    stereo = np.random.default_rng(0).normal(size=(44100, 2)) * 0.1
    soundfile.write(tmp_path / "noise.wav", stereo, 44100)
    soundfile.write(tmp_path / "long.wav", np.tile(stereo, (20, 1)), 44100)
    rows = [
        {"text": "something red", "image": "red.png"},
        {"text": "noise", "speech": "noise.wav"},
        {"text": "much noise", "music": "long.wav"},
        {"text": "much noise", "speech": "long.wav"},
        {"text": "nothing", "image": "none.png"},
    ]
    tokenized, data = tokenize_and_pack(tmp_path, rows, codec_flags)
    assert "1 image, 1 speech, 1 music" in tokenized.stdout
    assert (
        "2 left out" in tokenized.stderr
        and "too long" in tokenized.stderr
        and "missing file" in tokenized.stderr
    )
    assert data.records.keys() == {"image", "speech", "music"}
    image = data.vocabulary.modalities["image"]
    tokens = data.batch(0)["tokens"]
    starts = np.argwhere(tokens == image.start_id)
    assert len(starts)
    for row, start in starts:
        codes = data.vocabulary.ids_to_codes("image", tokens[row, start + 1 : start + 33])
        assert codes.shape == (16, 2)


@pytest.mark.skipif(not REAL_MEDIA.is_dir(), reason=f"no real photo, speech and music at {REAL_MEDIA}")
def test_a_real_photo_speech_and_music_become_batches(tmp_path, codec_flags):
    rows = [
        {"text": "a cat", "image": str(REAL_MEDIA / "cat.jpg")},
        {
            "text": "can you draw me a picture of a sunny beach",
            "speech": str(REAL_MEDIA / "can_you_draw_me_a_picture_of_a_sunny_beach.wav"),
        },
        {"text": "indie rock", "music": str(REAL_MEDIA / "indie_rock.wav")},
    ]
    tokenized, data = tokenize_and_pack(tmp_path, rows, codec_flags)
    assert "1 image, 1 speech, 1 music" in tokenized.stdout
    assert data.batch(0)["tokens"].shape == (4, data.seq_len)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("tokenize", ("--manifest=none.jsonl", "--out=none"), "The manifest 'none.jsonl' cannot be read"),
        ("pack", ("--tokens=none", "--out=none"), "is neither a token directory nor a .jsonl"),
        ("pack", ("--tokens=none", "--out=none", "--config.pack.length=3"), "Unknown config field"),
        ("pack", ("--tokens=none", "--out=none", "--config.instructions=none.json"), "The instruction file"),
    ],
)
def test_mistakes_are_answered_with_one_sentence_and_exit_code_2(name, arguments, sentence, codec_flags):
    result = command(name, *arguments, *codec_flags)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert not (ROOT / "none").exists()
