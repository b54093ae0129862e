"""SoundStorm's decoding, in the original's way (also as recorded) and corrected, and its importer."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.soundstorm import Options, SoundStorm, generate, kept_unknown
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from soundstorm_states import random_state

LEVELS, CODES, SEMANTIC = 7, 20, 16


@pytest.fixture(scope="module")
def corrected(model) -> SoundStorm:
    return SoundStorm(model.spec, model.params)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SoundStorm:
    folder = tmp_path_factory.mktemp("soundstorm")
    safetensors.numpy.save_file(random_state(), folder / "model.safetensors")
    import_soundstorm(folder / "model.safetensors", folder / "out", heads=2)
    return SoundStorm.from_pretrained(folder / "out")


def inputs(length: int, prompt: int, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(length)
    return rng.integers(0, SEMANTIC, (rows, length)), rng.integers(0, SEMANTIC, (rows, prompt, 1 + LEVELS))


def recorded() -> dict[str, np.ndarray]:
    """What tests/fixtures/make_soundstorm_fixture.py wrote."""
    with np.load(Path(__file__).parent / "fixtures" / "soundstorm.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def recorded_model(tmp_path_factory) -> SoundStorm:
    state = {
        key.removeprefix("state:"): value.astype(np.float32)
        for key, value in recorded().items()
        if key.startswith("state:")
    }
    folder = tmp_path_factory.mktemp("recorded")
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    return import_soundstorm(folder / "model.safetensors", folder / "out", heads=2)


@pytest.mark.parametrize("case", [key for key in recorded() if key.startswith("codes:")])
def test_the_reference_mode_tells_the_codes_that_the_original_told(recorded_model, case):
    arrays = recorded()
    steps, start, frames, greedy = map(int, case.split(":")[1:])
    semantic, prompt = arrays["semantic"][:, :frames], arrays["prompt"][:, :start]
    uniform = (arrays["noise"][: steps + 1, :, : start + frames].astype(np.float32) + 0.5) / 256
    noise = -np.log(-np.log(uniform + np.float32(1e-10)) + np.float32(1e-10))
    options = Options(steps=steps, greedy=bool(greedy), mode="reference")
    inputs = (part.astype(np.int32) for part in (semantic, prompt, np.full(len(semantic), frames)))
    net, weights = recorded_model.net, recorded_model.weights
    codes = np.asarray(generate(net, weights, *inputs, jax.random.key(0), options, noise))
    np.testing.assert_array_equal(codes, arrays[case])


def test_the_schedule_counts_as_the_original_does():
    assert kept_unknown(3, 12) == [12, 10, 6, 0]  # times counted from the start alone would make the 6 a 5
    assert kept_unknown(1, 7) == [7, 0]
    assert kept_unknown(8, 2) == [2, 1, 1, 1, 1, 1, 0, 0, 0]
    assert kept_unknown(9, 2) == [2, 1, 1, 1, 1, 1, 0, 0, 0, 0]  # float64 would keep 1 more


@pytest.mark.parametrize("greedy", [True, False])
def test_the_corrected_mode_keeps_the_level_it_was_given_and_fills_all_others(corrected, greedy):
    semantic, prompt = inputs(12, 4)
    codes = corrected.generate(semantic, prompt, steps=3, greedy=greedy, seed=1)
    np.testing.assert_array_equal(codes[..., 0], semantic)
    assert codes.shape == (2, 12, 8) and codes.max() < CODES
    other = corrected.generate(semantic, prompt, steps=3, greedy=greedy, seed=2)
    assert (codes == other).all() == greedy
    changed = prompt.copy()
    changed[..., 4:] = (changed[..., 4:] + 1) % CODES
    assert (corrected.generate(semantic, changed, steps=3, greedy=greedy, seed=1) != codes).any()


def test_in_the_corrected_mode_a_row_gives_what_it_gives_alone(corrected):
    semantic, prompt = inputs(12, 4)
    lengths = [12, 5]
    together = corrected.generate(semantic, prompt, lengths, steps=3)
    for row, length in enumerate(lengths):
        alone = corrected.generate(semantic[row : row + 1, :length], prompt[row : row + 1], steps=3)
        np.testing.assert_array_equal(together[row, :length], alone[0])
        assert not together[row, length:].any()


def test_impossible_arguments_are_named(model):
    semantic, prompt = inputs(12, 4)
    wrong = prompt.copy()
    wrong[1, 2, 3] = CODES
    for arguments, options, words in [
        ((semantic[0],), {}, "shape"),
        ((semantic, prompt[..., :7]), {}, "voice prompt"),
        ((semantic, wrong), {}, r"\[1, 2, 2\] is 20"),
        ((semantic + SEMANTIC,), {}, "semantic code"),
        ((semantic, prompt, [12, 13]), {}, "lengths"),
        ((semantic, prompt, [12, 3]), {"mode": "reference"}, "no lengths"),
        ((semantic,), {"mode": "other"}, "'other'"),
        ((semantic,), {"steps": 0}, "step"),
        ((semantic,), {"dropped": 1.0}, "`dropped`"),
        ((semantic,), {"dropped": float("nan")}, "`dropped`"),
        ((semantic + 0.5,), {}, "semantic codes are whole numbers, not float64"),
        ((semantic, np.where(wrong < CODES, wrong, np.nan)), {}, "prompt codes are whole numbers"),
    ]:
        with pytest.raises(UserError, match=words):
            model.generate(*arguments, **options)


def test_a_config_that_its_weights_do_not_fit_is_one_sentence(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in [
        ({"codebook_size": 21}, r"code_embedding has the shape \[147, 32\] .*asks for \[154, 32\]"),
        ({"depth": 3}, r"blocks/.* asks for \[3, "),
        ({"dim": "32"}, "config.json has a field that can't be used"),
        ({"width": 32}, "config.json has a field that can't be used"),
        ({"decoding": {"mode": "other"}}, "config.json: SoundStorm decodes in mode"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=words):
            SoundStorm.from_pretrained(tmp_path)


def test_both_ports_names_give_the_same_model_and_stray_keys_are_named(model, tmp_path):
    older = {
        "net1.0": "net.0",
        "net1.2": "net.2",
        "ds_conv.conv": "net.4.conv",
        "net2.1": "net.6",
        "net2.2": "net.7",
    }
    state = {}
    for key, value in random_state().items():
        for new, old in older.items():
            key = key.replace(f".conv.{new}.", f".conv.{old}.")
        state[key] = value
    safetensors.numpy.save_file(state, tmp_path / "older.safetensors")
    again = import_soundstorm(tmp_path / "older.safetensors", tmp_path / "out", heads=2)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), model.params, again.params))
    zeros, layer = (lambda *shape: np.zeros(shape, np.float32)), "net.conformer.layers."
    for change, words in [
        ({"extra.weight": zeros(2)}, "'extra.weight' is not known"),
        ({"net.heads.0.bias": zeros(3)}, r"'net.heads.0.bias' has the shape \(3,\), not \(224,\)"),
        ({"net.to_logits.2.weight": zeros(7, 32)}, r"\(7, 32\), not \(levels, width, codes\)"),
        ({f"{layer}0.conv.net.4.conv.weight": zeros(64, 31)}, r"net.4.*31\), not \(channels, 1, kernel\)"),
        ({f"{layer}1.conv.net.2.weight": zeros(128, 32, 3)}, r"1.conv.net.2.*3\), not \(128, 32, 1\)"),
        ({f"{layer}1.attn.fn.to_out.weight": zeros(32)}, r"to_out.*\(32,\), not \(32, 32\)"),
        ({f"{layer}x.post_norm.bias": zeros(32)}, "layers.x.post_norm.bias' is not known"),
        (
            {f"{layer}0.conv.net.0.bias": zeros(32) + np.nan},
            r"net.0.bias' has values that are no finite",
        ),
    ]:
        safetensors.numpy.save_file({**state, **change}, tmp_path / "wrong.safetensors")
        with pytest.raises(UserError, match=words):
            import_soundstorm(tmp_path / "wrong.safetensors", tmp_path / "other", heads=2)
    del state["net.to_logits.0.bias"]
    safetensors.numpy.save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"'net\.to_logits\.0\.bias' is missing"):
        import_soundstorm(tmp_path / "wrong.safetensors", tmp_path / "other", heads=2)
    assert not (tmp_path / "other").exists()
