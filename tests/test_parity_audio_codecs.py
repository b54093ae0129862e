"""SpeechTokenizer and EnCodec against the originals on random weights (extra `parity`).

SpeechTokenizer's package is compared with where it is installed (einops, and
`pip install --no-deps speechtokenizer==0.1.2`; with its dependencies it wants torchaudio, which nothing here
needs). What it computes is also recorded in tests/fixtures.
"""

import json

import numpy as np
import pytest
from anygpt_tokenizers import checkpoint_files, importers
from anygpt_tokenizers.codec import load_codec
from audio_signals import margins, sound

pytestmark = pytest.mark.parity


def lengths(hop: int, rate: int, rows: int) -> list[int]:
    """About nothing, a frame, a second; of a single row also half a minute."""
    return [1, 7, hop - 1, hop, hop + 1, rate + 123, *([30 * rate + 123] if rows == 1 else [])]


def check(codec, latents_of, codes_of, decoded, rows: int) -> None:
    """Compares a codec with the original's functions of torch tensors [B, 1, T], and of codes [B, F, K]."""
    torch = pytest.importorskip("torch")
    levels, equal = codec.spec.quantizers, []
    for length in lengths(codec.hop_length, codec.sample_rate, rows):
        wave = sound(rows, length, codec.sample_rate)
        with torch.no_grad():
            expected = latents_of(torch.as_tensor(wave)).numpy()
            codes = codes_of(torch.as_tensor(wave)).numpy()
            sounds = decoded(torch.as_tensor(codes)).numpy()
        latents = codec.latents(wave[:, 0])
        error = np.sqrt(np.mean((latents - expected) ** 2) / np.mean(expected**2))
        assert error <= 1e-5, (length, error)
        ours = codec.encode(wave[:, 0], last=levels)
        clear = margins(codec.params["quantizer"]["embed"], expected, codes) > 1e-4
        assert clear.mean() > 0.9 and (ours == codes)[clear].all()
        equal.append((ours == codes).ravel())
        np.testing.assert_allclose(codec.decode(codes), sounds, atol=1e-5, rtol=0)
    assert np.concatenate(equal).mean() >= 0.999 and len(np.unique(codes)) > 50


@pytest.mark.parametrize(("name", "rows"), [("ENCODEC_32K", 4), ("ENCODEC_24K", 1)])
def test_encodec_is_transformers_encodec(name, rows, tmp_path):
    pytest.importorskip("transformers")
    import audio_oracles as oracles

    config = getattr(oracles, name)
    model = oracles.random_encodec(**config)
    model.save_pretrained(tmp_path / "source")
    importers.import_encodec(tmp_path / "source", tmp_path / "codec")
    codec = load_codec(tmp_path / "codec")
    assert codec.module.spec.causal == (name == "ENCODEC_24K") and codec.hop_length == model.config.hop_length
    bandwidth = config["target_bandwidths"][-1]
    assert codec.levels_for(bandwidth) == codec.spec.quantizers == model.quantizer.num_quantizers
    check(
        codec,
        lambda wave: model.encoder(wave).transpose(1, 2),
        lambda wave: model.encode(wave, bandwidth=bandwidth).audio_codes[0].transpose(1, 2),
        lambda codes: model.decode(codes.transpose(1, 2)[None], [None]).audio_values[:, 0],
        rows,
    )


@pytest.mark.parametrize(("activation", "rows"), [("ELU", 4), ("Snake", 1)])
def test_speechtokenizer_is_the_packages(activation, rows, tmp_path):
    torch = pytest.importorskip("torch")
    import audio_oracles as oracles

    if not oracles.have_speechtokenizer():
        pytest.skip("the package speechtokenizer isn't installed")
    model = oracles.random_speechtokenizer(activation=activation)
    config = {**oracles.SPEECHTOKENIZER, "activation": activation}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"generator": model.state_dict()}, tmp_path / "ckpt.dev")
    importers.import_speechtokenizer(tmp_path / "ckpt.dev", tmp_path / "config.json", tmp_path / "codec")
    check(
        load_codec(tmp_path / "codec"),
        lambda wave: model.encoder(wave).transpose(1, 2),
        lambda wave: model.encode(wave).permute(1, 2, 0),
        lambda codes: model.decode(codes.permute(2, 0, 1))[:, 0],
        rows,
    )


def test_a_checkpoint_with_code_in_it_is_refused_unrun(tmp_path):
    torch = pytest.importorskip("torch")
    from anygpt_tokenizers.cli import UserError

    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"encoder.model.0.conv.conv.bias": Trap()}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="plain arrays"):
        checkpoint_files.read_state(tmp_path / "ckpt.pt")
    assert not (tmp_path / "sprung").exists()
