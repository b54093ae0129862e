"""SpeechTokenizer's recipe at test size, its teacher, and the sizes of the published recipes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import cli, resume, teachers
from anygpt_tokenizers.audio_generators import build_generator, fold_kernels, split_kernels
from anygpt_tokenizers.codec import MediaError, load_codec
from anygpt_tokenizers.fresh_weights import fresh_weights
from anygpt_tokenizers.speechtokenizer import SpeechTokenizer
from anygpt_tokenizers.train import build_training, train_codec
from training_media import RATE, read_log, write_tones

CONFIGS = "configs/tokenizers"


def load(name: str):
    return cli.load_config(f"{CONFIGS}/{name}").unlock()


def save_cepstra(wave: np.ndarray, stem) -> str:
    np.save(stem.with_suffix(".npy"), teachers.cepstra(wave, RATE))
    return stem.with_suffix(".npy").name


@pytest.mark.long
def test_speechtokenizers_recipe_lowers_its_losses_and_brings_level_0_to_the_teacher(tmp_path):
    data = write_tones(tmp_path, "speech", features=save_cepstra)
    config = load("speechtokenizer.py:dummy")
    config.teacher.update({"field": "features", "function": ""})
    config.steps = 100
    metrics = train_codec(config, data, tmp_path / "out", data)
    log = read_log(tmp_path / "out")
    assert log[-1]["mel_0"] < 0.8 * log[0]["mel_0"]
    early, late = ([row["teacher_cosine"] for row in rows] for rows in (log[:4], log[-4:]))
    assert np.mean(late) > np.mean(early) + 0.05
    assert {"adversarial", "feature", "discriminator", "level_commitment"} <= set(log[-1])
    codec = load_codec(tmp_path / "out")
    assert isinstance(codec, SpeechTokenizer) and codec.spec.bidirectional
    assert min(metrics["heldout"]["codes_used"]) > 2 and "teacher_cosine" in metrics["heldout"]
    assert codec.semantic_features(np.zeros((1, 640), np.float32)).shape == (1, 2, 39)
    assert not (tmp_path / "out" / resume.FILE).exists()


@pytest.mark.parametrize(
    ("name", "millions"), [("speechtokenizer.py", 103.68), ("encodec.py", 56.88), ("encodec.py:24khz", 14.85)]
)
def test_the_published_sizes_are_the_originals(name, millions):
    config = load(name)
    generator = build_generator(config.codec.to_dict())
    wave = jnp.zeros((1, 4 * generator.hop_length))
    params = jax.eval_shape(generator.module.init, jax.random.key(0), wave)["params"]
    params.pop("quantizer")
    params = jax.eval_shape(lambda params: split_kernels(params, generator.spec), params)
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    count = sum(leaf.size for _, leaf in flat)
    # torch's LSTM has two biases where one does.
    count += sum(leaf.size for path, leaf in flat if "lstm" in str(path) and "bias" in str(path[-1]))
    assert round(count / 1e6, 2) == millions
    training = build_training(config)
    assert set(training.output_terms) <= set(config.loss_weights)


def test_weight_normalised_kernels_are_the_ones_they_came_from():
    config = load("encodec.py:dummy")
    generator = build_generator(config.codec.to_dict())
    shapes = jax.eval_shape(generator.module.init, jax.random.key(0), jnp.zeros((1, 640)))["params"]
    kernels = fresh_weights(shapes, jax.random.key(0))
    split = split_kernels(kernels, generator.spec)
    longer = jax.tree_util.tree_map_with_path(
        lambda path, x: 3 * x if path[-1].key == "direction" else x, split
    )
    for params in (split, longer):
        folded = fold_kernels(params, generator.spec)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), folded, kernels)
    # One size per output, of a transposed convolution per input.
    assert split["trunk_down"]["layers_0"]["size"].shape == (1, 1, 8)
    assert split["trunk_up"]["layers_1"]["size"].shape == (32, 1, 1)


def test_every_level_pulls_the_latents_towards_its_codes():
    training = build_training(load("speechtokenizer.py:dummy"))
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    books = jnp.asarray(rng.normal(size=(2, 32, 8)), jnp.float32)

    def commitment(latents):
        found = training._quantize(books, latents, jnp.asarray(True), jax.random.key(0))
        return found.terms["level_commitment"], found

    pull, found = jax.grad(commitment, has_aux=True)(latents)
    left, expected = np.asarray(latents), 0
    for level in range(2):
        left = left - np.asarray(books)[level, np.asarray(found.codes)[..., level]]
        expected = expected + 2 * left / left.size / 2  # of a mean over entries and over levels
    np.testing.assert_allclose(pull, expected, atol=1e-6)


def test_settings_that_contradict_each_other_are_named(tmp_path):
    for change, words in [
        ({"teacher": {"function": ""}}, "'distill'"),
        ({"teacher": {"field": "features"}}, "'features' and config.teacher.function .* two teachers"),
        ({"speed_range": (0.9, 1.1)}, "speed_range"),
        ({"adversary": {"networks": {"periods": (), "scales": 0}}, "loss_weights": {}}, "adversary"),
        ({"adversary": {"kind": "none"}}, "least_squares"),
        ({"codec": {"type": "mp3"}}, "'mp3'"),
        ({"codec": {"normalize": True}}, "without scales"),
    ]:
        config = load("speechtokenizer.py:dummy")
        if change.get("loss_weights") == {}:
            config.loss_weights = {"l1": 1.0, "distill": 1.0}
        config.update(change)
        with pytest.raises(cli.UserError, match=words):
            build_training(config)
    data = write_tones(tmp_path, "speech", count=2)
    config = load("speechtokenizer.py:dummy")
    config.teacher.function = "anygpt_tokenizers.teachers:nobody"
    with pytest.raises(cli.UserError, match="nobody"):
        build_training(config).read_examples(data)
    config.teacher.update({"function": "", "field": "features"})
    with pytest.raises(cli.UserError, match="'features'"):
        build_training(config).read_examples(data)


def test_teacher_features_of_another_width_are_named_and_a_broken_file_is_passed_over(tmp_path):
    def save(wave, stem):
        np.save(stem.with_suffix(".npy"), teachers.cepstra(wave, RATE))
        return stem.with_suffix(".npy").name

    data = write_tones(tmp_path, "speech", count=3, features=save)
    config = load("speechtokenizer.py:dummy")
    config.keep_in_memory = False
    config.teacher.update({"field": "features", "function": ""})
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    training = build_training(config)
    batch = training.sample_batch(training.read_examples(data), np.random.default_rng(0))
    assert batch["features"].shape == (4, 6, 39) and (batch["frames"] == 6).all()
    np.save(tmp_path / "0.npy", np.zeros((50, 3), np.float32))
    with pytest.raises(cli.UserError, match=r"0\.npy.*\[50, 3\]"):
        training.read_examples(data)[0]
    (tmp_path / "0.npy").write_bytes(b"nothing")
    with pytest.raises(MediaError, match="npy"):
        training.read_examples(data)[0]
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"speech": "0.wav"}) + "\n{")
    with pytest.raises(cli.UserError, match="line 2"):
        training.read_examples(data)


def test_cepstra_have_fifty_frames_a_second_and_say_nothing_about_loudness():
    wave = np.random.default_rng(0).normal(size=8000).astype(np.float32) * np.linspace(0.1, 0.5, 8000)
    features = teachers.cepstra(wave, RATE)
    assert features.shape == (26, 39) and features.dtype == np.float32
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    assert teachers.cepstra(wave[:1500], RATE).shape == (5, 39)
