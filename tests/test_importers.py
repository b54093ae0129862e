"""Importing published audio checkpoints: both spellings, every key accounted for, mistakes named."""

import fractions
import json

import numpy as np
import pytest
from anygpt_tokenizers import checkpoint_files, importers
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import load_codec
from recorded_codecs import import_checkpoint, write_checkpoint

FIRST = {"speech_elu": "encoder.model.0.conv.conv", "encodec_music": "encoder.layers.0.conv"}


def refused(case: str, folder, change) -> str:
    """The sentence with which a changed checkpoint is refused; nothing must be written."""
    write_checkpoint(case, folder / "checkpoint", change)
    with pytest.raises(UserError) as caught:
        import_checkpoint(case, folder / "checkpoint", folder / "codec")
    assert not (folder / "codec").exists() and [path.name for path in folder.iterdir()] == ["checkpoint"]
    return str(caught.value)


def test_an_imported_codec_is_found_again_with_its_hash(tmp_path):
    write_checkpoint("speech_snake", tmp_path / "checkpoint")
    codec = import_checkpoint("speech_snake", tmp_path / "checkpoint", tmp_path / "codec", num_codebooks=1)
    again = load_codec(tmp_path / "codec")
    assert again.hash == codec.hash and again.type == "speechtokenizer" and again.spec == codec.spec
    assert (again.modality, again.num_codebooks, again.codebook_size) == ("speech", 1, 32)
    assert (again.sample_rate, again.hop_length, again.frame_rate) == (16000, 20, 800.0)
    assert again.encode(np.zeros((1, 50), np.float32)).shape == (1, 3, 1)
    with pytest.raises(UserError, match="exists already"):
        import_checkpoint("speech_snake", tmp_path / "checkpoint", tmp_path / "codec")


@pytest.mark.parametrize("case", ["speech_elu", "encodec_music"])
def test_every_spelling_of_keys_and_of_weight_norm_gives_the_same_weights(case, tmp_path):
    def hubs(state, config):  # the files on the hub, saved before torch's parametrizations
        _rename(state, "parametrizations.weight.original0", "weight_g")
        _rename(state, "parametrizations.weight.original1", "weight_v")

    def parametrized(state, config):
        _rename(state, "weight_g", "parametrizations.weight.original0")
        _rename(state, "weight_v", "parametrizations.weight.original1")

    def originals(state, config):
        for key in list(state):
            new = key.replace(".layers.", ".model.", 1) if key[:7] in ("encoder", "decoder") else key
            new = new.replace("quantizer.layers.", "quantizer.vq.layers.").replace(
                ".codebook.", "._codebook."
            )
            state[new.replace(".conv.", ".conv.conv.").replace(".conv.conv.conv.", ".conv.conv.")] = (
                state.pop(key)
            )

    hashes = set()
    for change in (lambda state, config: None, hubs, parametrized, originals):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_checkpoint(case, folder, change)
        hashes.add(import_checkpoint(case, folder, folder / "codec").hash)
    assert len(hashes) == 1


def test_weight_norm_is_folded_along_the_first_axis():
    rng = np.random.default_rng(0)
    g, v = rng.normal(size=(3, 1, 1)), rng.normal(size=(3, 4, 5))
    folded = importers.fold_weight_norm({"a.weight_g": g, "a.weight_v": v, "a.bias": g}, "here", {})
    assert set(folded) == {"a.weight", "a.bias"}
    for row in range(3):
        np.testing.assert_allclose(np.linalg.norm(folded["a.weight"][row]), abs(g[row, 0, 0]))
        np.testing.assert_allclose(folded["a.weight"][row], v[row] * g[row] / np.linalg.norm(v[row]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["speech_elu", "encodec_music"])
def test_keys_that_are_missing_unknown_not_finite_or_of_another_shape_are_named(case, tmp_path):
    first = FIRST[case]
    key = f"{first}.bias"

    def lost(state, config):
        del state[key]

    def half(state, config):
        del state[
            next(name for name in state if name.startswith(first) and name.endswith(("_v", "original1")))
        ]

    def extra(state, config):
        state["quantizer.project_in.weight"] = np.zeros((2, 2), np.float32)

    def wider(state, config):
        state[key] = np.zeros(3, np.float32)

    def broken(state, config):
        state[key][1] = np.nan

    def scaled(state, config):
        next(state[name] for name in parts_of(state, first) if name.endswith(("_g", "original0")))[0] = np.inf

    def empty(state, config):
        next(state[name] for name in parts_of(state, first) if name.endswith(("_v", "original1")))[1] = 0

    def unfilled(state, config):
        state[next(name for name in state if name.endswith("inited"))][:] = 0

    for change, words in [
        (lost, [importers.canonical_key(key), "missing"]),
        (half, ["encoder.layers.0.conv.weight_g", "only"]),
        (extra, ["quantizer.project_in.weight", "not known", "projected"]),
        (wider, [key, "(3,)", "(2,)"]),
        (broken, [repr(key), "no finite numbers"]),
        (scaled, [f"'{first}.", "no finite numbers"]),
        (empty, [f"'{first}.", "only zeros in row 1"]),
        (unfilled, ["inited", "never filled"]),
    ]:
        folder = tmp_path / change.__name__
        sentence = refused(case, folder, change)
        assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("case", ["speech_elu", "encodec_music"])
def test_two_spellings_of_one_weight_are_both_named(case, tmp_path):
    def plain(state, config):  # which would win over the other two
        _, v = parts_of(state, FIRST[case])
        state[f"{FIRST[case]}.weight"] = np.zeros_like(state[v])

    def twice(state, config):
        for name in parts_of(state, FIRST[case]):
            for new, old in zip(("weight_g", "weight_v"), ("original0", "original1"), strict=True):
                if name.endswith((new, old)):
                    state[f"{FIRST[case]}.{new}"] = state[name].copy()
                    state[f"{FIRST[case]}.parametrizations.weight.{old}"] = state[name].copy()

    def elsewhere(state, config):
        for name in ("encoder.layers.0.conv.bias", "encoder.model.0.conv.conv.bias"):
            state[name] = state[f"{FIRST[case]}.bias"].copy()

    for change, words in [(plain, ["weight'"]), (twice, ["weight_", "original"]), (elsewhere, ["bias'"])]:
        sentence = refused(case, tmp_path / change.__name__, change)
        assert "spellings of one weight" in sentence and sentence.count(FIRST[case]) >= 1, sentence
        assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("case", "field", "value", "words"),
    [
        ("speech_elu", "strides", "5,4", "a list of whole numbers above 0"),
        ("speech_elu", "strides", [5, 0], "a list of whole numbers above 0"),
        ("speech_elu", "n_filters", "2", "a whole number above 0"),
        ("speech_elu", "sample_rate", None, "a whole number above 0"),
        ("speech_elu", "bidirectional", 1, "true or false"),
        ("encodec_music", "upsampling_ratios", "5,4", "a list of whole numbers above 0"),
        ("encodec_music", "trim_right_ratio", "1", "a number"),
        ("encodec_music", "sampling_rate", 0, "a whole number above 0"),
        ("encodec_music", "target_bandwidths", "24", "list numbers"),
        ("encodec_music", "target_bandwidths", [float("nan")], "list numbers"),
        ("encodec_music", "normalize", "yes", "true or false"),
        ("encodec_music", "chunk_length_s", "1", "a number or null"),
        ("encodec_music", "overlap", True, "a number or null"),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(case, field, value, words, tmp_path):
    sentence = refused(case, tmp_path, lambda state, config: config.update({field: value}))
    assert f"config.json: {field} is {value!r}; it must " in sentence and words in sentence


def test_a_checkpoint_of_another_size_than_its_config_is_named(tmp_path):
    def other(state, config):
        config["dimension"] = 16

    sentence = refused("speech_elu", tmp_path / "a", other)
    assert "has the shape" in sentence and "must be" in sentence
    sentence = refused("encodec_music", tmp_path / "b", lambda state, config: config.update(compress=64))
    assert "the values in its config make no net" in sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio_channels", 3),
        ("norm_type", "layer_norm"),
        ("pad_mode", "circular"),
        ("overlap", 1.0),
        ("target_bandwidths", 0.1),
        ("target_bandwidths", 1e30),
        ("codebook_size", 1),
    ],
)
def test_an_encodec_of_another_kind_is_refused_by_its_field(field, value, tmp_path):
    def change(state, config):
        config.update({"chunk_length_s": 1.0, field: [value] if field == "target_bandwidths" else value})

    sentence = refused("encodec_music", tmp_path, change)
    assert f"config.json: {field} " in sentence and repr(value) in sentence


def test_unusable_configs_and_files_get_one_sentence(tmp_path):
    assert "'n_filters'" in refused(
        "speech_elu", tmp_path / "a", lambda state, config: config.pop("n_filters")
    )
    sentence = refused("speech_elu", tmp_path / "b", lambda state, config: config.update(activation="ReLU"))
    assert "ReLU" in sentence
    write_checkpoint("encodec_music", tmp_path / "c")
    weights = tmp_path / "c" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="plain arrays"):
        importers.import_encodec(tmp_path / "c", tmp_path / "codec")
    weights.unlink()
    with pytest.raises(UserError, match="neither"):
        importers.import_encodec(tmp_path / "c", tmp_path / "codec")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        importers.import_encodec(tmp_path / "c", tmp_path / "codec")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint_files.read_state(tmp_path / "nothing.pt")


@pytest.mark.parity  # which is where torch is
def test_torch_files_of_other_things_than_arrays_by_name_are_refused_without_torchs_advice(tmp_path):
    import torch

    for content, words in [
        (
            {"bias": torch.zeros(2), "args": fractions.Fraction(1)},
            r"Python objects .*(fractions.Fraction)",
        ),
        ({0: torch.zeros(2)}, "not a state dict"),
        ({"bias": torch.zeros(2), "epoch": 3}, "not a state dict"),
    ]:
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(UserError, match=words) as caught:
            checkpoint_files.read_state(tmp_path / "model.pt")
        assert "weights_only" not in str(caught.value)
    (tmp_path / "model.pt").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="damaged, no torch file"):
        checkpoint_files.read_state(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("case", "field", "value", "words"),
    [
        ("speech_snake", "activation", "ELU", "encoder_act/slope has the shape .* asks for none"),
        ("speech_snake", "activation", "ReLU", "activation is 'ReLU'; there are ELU and Snake"),
        ("speech_snake", "codebook_size", 64, "quantizer/embed has the shape"),
        ("speech_snake", "quantizers", 2, "num_codebooks is 3, but quantizers.* are 2"),
        ("speech_snake", "num_codebooks", True, "num_codebooks is True; it must be a whole number above 0"),
        ("speech_snake", "strides", [5, 0], "strides is .* a list of whole numbers above 0"),
        ("speech_snake", "compress", 64, "can't be used|has the shape"),
        ("encodec_music", "conv_shortcut", True, "shortcut/.* is missing"),
        ("encodec_music", "sample_rate", "32000", "sample_rate is '32000'; it must be a whole number"),
        ("encodec_music", "normalize", "yes", "normalize is 'yes'; it must be true or false"),
        ("encodec_music", "chunk_length_s", "1", "chunk_length_s is '1'; it must be a number or null"),
    ],
)
def test_a_codec_whose_config_and_weights_are_of_two_nets_is_refused_when_loaded(
    case, field, value, words, tmp_path
):
    write_checkpoint(case, tmp_path / "checkpoint")
    import_checkpoint(case, tmp_path / "checkpoint", tmp_path / "codec", num_codebooks=3)
    path = tmp_path / "codec" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UserError, match=words) as caught:
        load_codec(tmp_path / "codec")
    assert str(caught.value).startswith(str(tmp_path / "codec"))


def test_configs_may_leave_out_what_transformers_fills_in(tmp_path):
    write_checkpoint("encodec_causal", tmp_path, lambda state, config: config.pop("use_conv_shortcut"))
    codec = import_checkpoint("encodec_causal", tmp_path, tmp_path / "codec", num_codebooks=2)
    assert codec.spec.conv_shortcut and codec.modality == "audio" and codec.num_codebooks == 2
    assert json.loads((tmp_path / "codec" / "config.json").read_text())["type"] == "encodec"


def parts_of(state: dict, stem: str) -> list[str]:
    """The keys of the two parts of a convolution's normalised weight."""
    return [name for name in state if name.startswith(stem) and "weight" in name]


def _rename(state: dict, old: str, new: str) -> None:
    for key in [key for key in state if key.endswith(old)]:
        state[key.removesuffix(old) + new] = state.pop(key)
