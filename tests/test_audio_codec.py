"""The small audio codec: shapes, padding, the host-side class, training from scratch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import cli, residual_vq, seanet
from anygpt_tokenizers.audio_codec import AudioCodec
from anygpt_tokenizers.audio_training import AudioTraining
from anygpt_tokenizers.codec import MediaError, load_codec
from anygpt_tokenizers.media_audio import write_audio

CONFIG = "configs/tokenizers/speech_small.py:dummy"


def dummy_config(**codec):
    config = cli.load_config(CONFIG).unlock()
    config.codec.update(codec)
    return config


@pytest.fixture(scope="module")
def codec() -> AudioCodec:
    """An untrained codec whose codebooks hold latents of noise, so that codes vary."""
    training = AudioTraining(dummy_config(num_codebooks=2))
    params, state = training.init(jax.random.key(0), [])
    noise = jax.random.normal(jax.random.key(1), (1, 64 * 640)) * 0.1
    latents = training.generator.encode(params, noise)[0]
    embed = jnp.stack([latents[:32], latents[32:] - latents[:32]])
    return training.to_codec(params, state._replace(codebooks=state.codebooks._replace(embed=embed)))


def noise(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 0.1).astype(np.float32)


@pytest.mark.parametrize("stride", [2, 4, 5, 8])
def test_the_transposed_convolution_is_the_transpose_of_the_strided_one(stride):
    down = seanet.Conv(3, 2 * stride, stride)
    x, y = noise(2, 6 * stride, 4), noise(2, 6, 3)
    kernel = noise(2 * stride, 4, 3)
    params = {"conv": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}
    up = seanet.TransposedConv(4, stride)
    up_params = {"kernel": kernel.transpose(2, 0, 1), "bias": np.zeros(4, np.float32)}
    forward = jnp.vdot(down.apply({"params": params}, x), y)
    backward = jnp.vdot(x, up.apply({"params": up_params}, y))
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


@pytest.mark.parametrize(
    ("front", "head"), [("waveform", "waveform"), ("stft", "istft"), ("waveform", "istft")]
)
def test_both_fronts_and_heads_keep_the_frame_count(front, head):
    config = dummy_config(
        front=front,
        head=head,
        encoder_filters=2,
        decoder_filters=2,
        encoder_strides=(4,) if front == "stft" else (4, 4, 5, 8),
        decoder_strides=(4,) if head == "istft" else (8, 5, 4, 4),
    )
    if head == "waveform":
        config.loss_weights = {"log": 1.0, "mel": 1.0, "commitment": 0.25}
    training = AudioTraining(config)
    params, state = training.init(jax.random.key(0), [])
    codec = training.to_codec(params, state)
    codes = codec.encode(noise(2, 3 * 640 + 1))
    assert codec.hop_length == 640 and codec.frame_rate == 25
    assert codes.shape == (2, 4, 1) and codes.dtype == np.int32
    wave = codec.decode(codes)
    assert wave.shape == (2, 4 * 640) and wave.dtype == np.float32 and np.isfinite(wave).all()
    batch = {"wave": noise(2, config.crop_frames * 640)}
    loss, _ = jax.jit(training.loss)(params, state, batch, jax.random.key(0))
    assert np.isfinite(loss)


def test_a_clip_has_the_same_codes_alone_in_a_batch_and_before_silence(codec):
    clips = [noise(length) for length in (640, 7_000, 20_001, 31_000)]
    alone = [codec.encode(clip[None])[0] for clip in clips]
    together = codec.encode_many(clips)
    padded = codec.encode(np.stack([np.pad(clip, (0, 40_000 - len(clip))) for clip in clips]))
    for i, codes in enumerate(alone):
        np.testing.assert_array_equal(codes, together[i])
        np.testing.assert_array_equal(codes, padded[i, : len(codes)])


def test_samples_that_are_not_sound_get_one_sentence(codec):
    with pytest.raises(cli.UserError, match=r"shape \[batch, time\], not \[640\]"):
        codec.encode(noise(640))
    with pytest.raises(cli.UserError, match=r"not \[1, 640, 2\]"):
        codec.encode(noise(1, 640, 2))
    with pytest.raises(cli.UserError, match=r"not \[1, 0\]"):
        codec.encode(noise(1, 0))
    broken = noise(2, 640)
    broken[1, 17] = np.nan
    with pytest.raises(cli.UserError, match="Sample 17 of row 1"):
        codec.encode(broken)


def test_a_clip_that_cannot_be_encoded_costs_no_other(codec):
    clips = [noise(640), np.full(700, np.nan), noise(9_000), noise(0), noise(640, 2), noise(1)]
    codes, refused = codec.encode_usable(clips)
    assert {index: error.reason for index, error in refused.items()} == {
        1: "samples that are not finite",
        3: "no samples",
        4: "samples of a wrong shape",
    }
    for index, one in zip((0, 2, 5), codes, strict=True):
        np.testing.assert_array_equal(one, codec.encode(clips[index][None])[0])
    with pytest.raises(MediaError, match="clip 1 of 6: samples that are not finite"):
        codec.encode_many(clips)
    assert codec.encode_many([]) == [] and codec.encode_usable([]) == ([], {})


def test_long_input_in_chunks_gives_the_codes_of_one_piece(codec, monkeypatch):
    wave = noise(1, 60 * 640)
    whole = codec.encode(wave)
    monkeypatch.setattr("anygpt_tokenizers.audio_codec.CHUNK", 17)
    np.testing.assert_array_equal(codec.encode(wave), whole)


def test_a_saved_codec_has_the_same_hash_and_the_same_codes_and_sound(codec, tmp_path):
    codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    assert again.hash == codec.hash and len(again.hash) == 16
    codes = codec.encode(noise(1, 9_000))
    np.testing.assert_array_equal(again.encode(noise(1, 9_000)), codes)
    np.testing.assert_array_equal(again.decode(codes), codec.decode(codes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_codebooks": 1}, r"codebooks has the shape \[2, 32, .*asks for \[1, 32, "),
        ({"codebook_size": 64}, r"codebooks has the shape \[2, 32, .*asks for \[2, 64, "),
        ({"residual_layers": 0}, "model/.*/residual_0_0/.* asks for none"),
        ({"front": "spectrum"}, "front is 'spectrum'; there are waveform and stft"),
        ({"n_fft": 333}, "field that can't be used"),
        ({"refinements": "many"}, "refinements is 'many'; it must be a whole number above 0 or 0"),
        ({"floor": 0}, "floor is 0; it must be above 0"),
    ],
)
def test_a_config_that_its_weights_do_not_fit_is_one_sentence(codec, tmp_path, change, words):
    codec.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**codec.config, **change}))
    with pytest.raises(cli.UserError, match=words):
        load_codec(tmp_path)


@pytest.mark.parametrize(
    "codes", [np.zeros((1, 3, 1)), np.zeros((1, 0, 2)), np.full((1, 3, 2), 32), -np.ones((1, 3, 2))]
)
def test_codes_that_are_not_the_codecs_get_one_sentence(codec, codes):
    with pytest.raises(cli.UserError):
        codec.decode(codes)


def test_a_code_out_of_range_is_named_with_its_place(codec):
    codes = np.zeros((2, 3, 2), np.int32)
    codes[1, 2, 1] = 32
    with pytest.raises(cli.UserError, match=r"row 1, frame 2, level 1 is 32"):
        codec.decode(codes)


def test_the_chosen_code_is_the_nearest_and_levels_add_up():
    books, x = jnp.asarray(noise(3, 16, 4)), jnp.asarray(noise(50, 4))
    codes, quantized, inputs = residual_vq.quantize(books, x)
    np.testing.assert_allclose(quantized, residual_vq.dequantize(books, codes), atol=1e-6)
    for level in range(3):
        distance = np.linalg.norm(inputs[:, level, None] - books[level], axis=-1)
        np.testing.assert_array_equal(codes[:, level], distance.argmin(-1))


def test_codes_out_of_use_are_restarted_on_recent_latents():
    state = residual_vq.init_codebooks(levels=1, size=8, dimension=2, pool=64)
    state = state._replace(embed=state.embed + 100.0, sums=state.sums + 100.0, counts=state.counts + 1.0)
    x = jnp.asarray(noise(64, 2))
    for step in range(60):
        codes, _, inputs = residual_vq.quantize(state.embed, x)
        state = residual_vq.update_codebooks(state, inputs, codes, jax.random.key(step), 0.8, 0.1)
    codes, quantized, _ = residual_vq.quantize(state.embed, x)
    assert float(residual_vq.perplexity(codes, 8)[0]) > 4
    assert float(jnp.mean((x - quantized) ** 2)) < 0.5 * float(jnp.mean(x**2))


def test_training_from_scratch_lowers_the_loss_and_is_repeatable(tmp_path):
    from anygpt_tokenizers.train import train_codec

    rows = []
    for i in range(6):
        time = np.arange(16_000) / 16_000
        write_audio(0.5 * np.sin(2 * np.pi * 110 * (i + 2) * time), tmp_path / f"{i}.wav", 16_000)
        rows.append(json.dumps({"text": str(i), "speech": f"{i}.wav"}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows))
    config = dummy_config()
    config.steps = 30
    first = train_codec(config, tmp_path, tmp_path / "a", tmp_path)
    log = [json.loads(line) for line in (tmp_path / "a/train_log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.95 * log[0]["loss"]
    assert first["heldout"]["codes_used"][0] > 1
    train_codec(config, tmp_path, tmp_path / "b", tmp_path)
    assert load_codec(tmp_path / "a").hash == load_codec(tmp_path / "b").hash
