"""Ten minutes of sound through small codecs: what the host holds besides the waveform stays small."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import cli
from anygpt_tokenizers.audio_generators import build_generator
from anygpt_tokenizers.media_audio import write_audio
from training_media import RATE

SECONDS = 600
WAVEFORM = 4 * SECONDS * RATE  # bytes of float32
MOST = 2 * WAVEFORM + (16 << 20)  # the waveform as it is read, growing, and everything else


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.wav"
    minute = np.random.default_rng(0).uniform(-0.3, 0.3, 60 * RATE).astype(np.float32)
    write_audio(np.tile(minute, SECONDS // 60), path, RATE)
    return path


@pytest.mark.parametrize("config", ["speech_small.py:dummy", "encodec.py:dummy"])
def test_a_long_file_is_encoded_in_memory_set_by_its_waveform(config, ten_minutes):
    settings = cli.load_config(f"configs/tokenizers/{config}").codec.to_dict()
    settings["num_codebooks"] = settings.get("quantizers", 1)
    generator = build_generator(settings)
    params = generator.init(jax.random.key(0), 6)
    shape = settings["num_codebooks"], settings["codebook_size"], settings["dimension"]
    codec = generator.to_codec(params, jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32))
    codec.encode(np.zeros((1, 20 * RATE), np.float32))  # what the first use compiles isn't the file's
    tracemalloc.start()
    try:
        codes = codec.encode_file(ten_minutes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert codes.shape == (-(-SECONDS * RATE // codec.hop_length), codec.num_codebooks)
    assert peak < MOST, f"{peak / 2**20:.0f} MiB of {MOST / 2**20:.0f}"


def test_a_long_clip_among_short_ones_does_not_make_them_as_long(monkeypatch):
    settings = cli.load_config("configs/tokenizers/encodec.py:dummy").codec.to_dict()
    generator = build_generator(settings)
    shape = settings["num_codebooks"], settings["codebook_size"], settings["dimension"]
    codec = generator.to_codec(generator.init(jax.random.key(0), 6), jnp.zeros(shape))
    shapes = []

    def encode(samples, lengths, *levels):
        shapes.append(samples.shape)
        return np.zeros((len(samples), -(-samples.shape[1] // codec.hop_length), 3), np.int32)

    monkeypatch.setattr(codec, "encode", encode)
    short, long = np.zeros(1000, np.float32), np.zeros(3001 * codec.hop_length, np.float32)
    found = codec.encode_many([short, long, short, long])
    assert shapes == [(2, 1000), (1, len(long)), (1, len(long))]
    assert [len(codes) for codes in found] == [4, 3001, 4, 3001]
