"""EnCodec with loudness beside the codes, chunks, stereo and time norms, against transformers (`parity`)."""

import numpy as np
import pytest
from anygpt_tokenizers import importers
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.encodec import Encodec
from anygpt_tokenizers.published_codec import PublishedCodec
from audio_signals import margins, sound

pytestmark = pytest.mark.parity

CASES = {
    "as published": {},
    "mono, a quarter overlaps, odd strides": {
        "audio_channels": 1,
        "overlap": 0.26,
        "upsampling_ratios": [5, 3],
    },
    "chunks without loudness": {"normalize": False, "norm_type": "weight_norm", "use_causal_conv": True},
    "loudness without chunks": {"chunk_length_s": None, "overlap": None, "audio_channels": 1},
}


def imported(changes: dict, folder) -> tuple:
    """transformers' model and ours."""
    pytest.importorskip("transformers")
    import audio_oracles as oracles

    model = oracles.random_encodec(**{**oracles.ENCODEC_48K, **changes})
    model.save_pretrained(folder / "source")
    importers.import_encodec(folder / "source", folder / "codec")
    return model, load_codec(folder / "codec")


def samples(codec: Encodec, rows: int, length: int) -> np.ndarray:
    """Sound [rows, length] or [rows, length, channels], loud at first and soft later."""
    wave = sound(rows * codec.channels, length, codec.sample_rate)[:, 0].reshape(rows, codec.channels, -1)
    wave *= np.exp(-2 * np.arange(length) / length, dtype=np.float32)
    return wave[:, 0] if codec.channels == 1 else wave.swapaxes(1, 2)


def tensor_of(wave: np.ndarray):
    """[B, T] or [B, T, channels] -> torch's [B, channels, T]."""
    torch = pytest.importorskip("torch")
    return torch.as_tensor(wave.reshape(*wave.shape[:2], -1).swapaxes(1, 2).copy())


def original(model, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes [F, levels], scales [chunks], decoded [T, channels]) of one clip [T] or [T, channels]."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        bandwidth = model.config.target_bandwidths[-1]
        codes, scales, missing = model.encode(tensor_of(wave[None]), bandwidth=bandwidth)[:3]
        again = model.decode(codes, scales, last_frame_pad_length=missing)[0]
    chunks = [chunk[0].T.numpy() for chunk in codes]
    chunks[-1] = chunks[-1][: len(chunks[-1]) - missing]
    scales = np.array([1 if scale is None else scale.item() for scale in scales], np.float32)
    return np.concatenate(chunks), scales, again[0].T.numpy()


@pytest.mark.parametrize("case", CASES)
def test_codes_scales_and_sound_are_transformers_for_clips_of_any_length_in_one_batch(case, tmp_path):
    model, codec = imported(CASES[case], tmp_path)
    hop, chunks = codec.hop_length, codec.chunking
    lengths = [1, hop - 1, hop + 1, 40 * hop + 7]
    if chunks:
        overlap = chunks.length - chunks.stride
        lengths = [1, hop + 1, chunks.stride, 3 * chunks.stride, 3 * chunks.stride + overlap + 7]
    batch = samples(codec, len(lengths), max(lengths))
    ours = codec.encode_scaled(batch, lengths, last=codec.spec.quantizers)
    originals = [original(model, wave[:length]) for wave, length in zip(batch, lengths, strict=True)]
    codes, scales = np.zeros_like(ours.codes), np.zeros_like(ours.scales)
    for row, (expected, loudness, _) in enumerate(originals):
        assert ours.frames[row] == len(expected) and (ours.scales[row] > 0).sum() == len(loudness)
        codes[row, : len(expected)], scales[row, : len(loudness)] = expected, loudness
    np.testing.assert_allclose(ours.scales, scales, rtol=1e-6)
    assert (ours.codes == codes).mean() >= 0.999 and len(np.unique(codes)) > 40
    if codec.normalize and chunks:
        assert scales[-1, 0] > 2 * scales[-1, -1]
    decoded = codec.decode(codes, ours.frames, scales=scales)
    for row, (_, _, again) in enumerate(originals):
        assert again.std() > 1e-3
        np.testing.assert_allclose(decoded[row, : len(again)].reshape(again.shape), again, atol=1e-5, rtol=0)
        assert not decoded[row, len(again) :].any()


def test_latents_are_transformers_and_clear_codes_equal(tmp_path):
    torch = pytest.importorskip("torch")
    model, codec = imported({}, tmp_path)
    wave = samples(codec, 2, 4807) * 4
    with torch.no_grad():
        latents = model.encoder(tensor_of(wave))
        codes = model.quantizer.encode(latents, model.config.target_bandwidths[-1]).permute(1, 2, 0).numpy()
    expected = latents.transpose(1, 2).numpy()
    error = np.sqrt(np.mean((codec.latents(wave) - expected) ** 2) / np.mean(expected**2))
    assert error <= 1e-5
    ours = PublishedCodec.encode(codec, wave, last=codec.spec.quantizers)
    clear = margins(codec.params["quantizer"]["embed"], expected, codes) > 1e-4
    assert clear.mean() > 0.9 and (ours == codes)[clear].all()
