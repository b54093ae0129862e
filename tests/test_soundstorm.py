"""SoundStorm's decoding, in the original's way and corrected, and its importer."""

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


def originals_way(logits_of, semantic, prompt, steps, greedy, noise):
    """What the original's generate does, written down in numpy; `noise` is its Gumbel noise of every pass."""
    rows, start = len(semantic), prompt.shape[1]
    condition = np.concatenate([prompt[..., 0], semantic], 1)
    size = condition.shape[1]
    codes = np.full((rows, size, LEVELS), CODES)
    codes[:, :start] = prompt[..., 1:]
    new = np.zeros((rows, size, LEVELS), bool)
    new[:, start:] = True
    mask = new.copy()
    for i in range(steps + 1):
        keep = int(np.floor(np.cos(np.pi / 2 * i / steps) * size + 1e-12))
        logits = logits_of(codes, condition)
        if keep == 0 and greedy:
            ids = logits.argmax(-1)
        else:
            least = np.sort(logits, -1)[..., CODES - int(np.ceil((1 - 0.7) * CODES)), None]
            logits = np.where(logits < least, -np.inf, logits).astype(np.float32)
            ids = (logits / np.float32(max(i / steps, 1e-10)) + noise[i]).argmax(-1)
        codes = np.where(mask, ids, codes)
        if keep == 0:
            break
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        share = weights / weights.sum(-1, keepdims=True)
        doubt = 1 - np.take_along_axis(share, ids[..., None], -1)[..., 0]
        highest = np.argsort(-doubt.reshape(rows, -1), axis=1, kind="stable")[:, :keep]
        mask = np.zeros((rows, size * LEVELS), bool)
        np.put_along_axis(mask, highest, True, 1)
        mask = mask.reshape(codes.shape)
        mask[..., 1:] = True
        mask &= new
        codes = np.where(mask, CODES, codes)
    for level in range(1, LEVELS):
        codes[..., level:] = logits_of(codes, condition).argmax(-1)[..., level:]
    return np.concatenate([semantic[..., None], codes[:, start:]], -1)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_reference_mode_does_what_the_original_does(model, steps):
    apply = jax.jit(lambda c, s: model.net.apply({"params": model.weights}, c, s, np.ones(s.shape, bool)))
    for prompt_size in (0, 5):
        semantic, prompt = inputs(12, prompt_size)
        shape = (steps + 1, 2, 12 + prompt_size, LEVELS, CODES)
        noise = np.random.default_rng(steps).gumbel(size=shape).astype(np.float32)
        for greedy in (True, False):
            expected = originals_way(
                lambda c, s: np.asarray(apply(c, s)), semantic, prompt, steps, greedy, noise
            )
            options = Options(steps=steps, greedy=greedy, mode="reference")
            lengths = np.array([12, 12])
            arrays = semantic, prompt, lengths, jax.random.key(0), options, noise
            ours = np.asarray(generate(model.net, model.weights, *arrays))
            np.testing.assert_array_equal(ours, expected)
            assert len(np.unique(ours[..., 1:])) > 8


def test_the_schedule_counts_as_the_original_does():
    assert kept_unknown(3, 12) == [12, 10, 6, 0]  # float32 would make the 6 a 5
    assert kept_unknown(1, 7) == [7, 0]
    assert kept_unknown(8, 2) == [2, 1, 1, 1, 1, 1, 0]


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
    ]:
        with pytest.raises(UserError, match=words):
            model.generate(*arguments, **options)


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
    for change, words in [
        ({"extra.weight": np.zeros(2, np.float32)}, "'extra.weight' is not known"),
        ({"net.heads.0.bias": np.zeros(3, np.float32)}, r"'net.heads.0.bias' has the shape \(3,\)"),
    ]:
        safetensors.numpy.save_file({**state, **change}, tmp_path / "wrong.safetensors")
        with pytest.raises(UserError, match=words):
            import_soundstorm(tmp_path / "wrong.safetensors", tmp_path / "other", heads=2)
    del state["net.to_logits.0.bias"]
    safetensors.numpy.save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"'net\.to_logits\.0\.bias' is missing"):
        import_soundstorm(tmp_path / "wrong.safetensors", tmp_path / "other", heads=2)
    assert not (tmp_path / "other").exists()
