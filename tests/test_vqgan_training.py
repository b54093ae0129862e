"""Training of VQGANs: every published term, a run that was killed, what is refused; and each term itself."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers import picture_losses, resume, train
from anygpt_tokenizers.cli import UserError, load_config
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.perceptual import STAGES, perceptual_distance, read_features
from anygpt_tokenizers.picture_adversary import PictureAdversary
from anygpt_tokenizers.picture_discriminator import Discriminator, blur_pool
from anygpt_tokenizers.vqgan_training import VqganTraining
from PIL import Image, ImageDraw
from training_media import read_log

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"
BATCH = 4  # doesn't divide among the eight devices of the tests, for which programs take long to compile


def load(name: str, **changes):
    config = load_config(f"{CONFIGS}/{name}").unlock()
    config.batch_size = BATCH
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """40 pictures of coloured discs on white."""
    folder, rng, rows = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for index in range(40):
        color, (x, y) = ("red", "green", "blue", "black")[index % 4], rng.uniform(5, 11, 2)
        image = Image.new("RGB", (16, 16), "white")
        ImageDraw.Draw(image).ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        image.save(folder / f"{index}.png")
        rows.append({"text": f"a {color} disc", "image": f"{index}.png"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def vgg_arrays(width: int = 2) -> dict[str, np.ndarray]:
    """Random weights of a VGG-16 with few channels, under torchvision's names."""
    rng, arrays, channels = np.random.default_rng(0), {}, 3
    for number in (number for stage in STAGES for number in stage):
        kernel = rng.normal(size=(width, channels, 3, 3)) / np.sqrt(9 * channels)
        arrays[f"features.{number}.weight"] = kernel.astype(np.float32)
        arrays[f"features.{number}.bias"] = np.full(width, 0.1, np.float32)
        channels = width
    return arrays


@pytest.fixture(scope="module")
def everything(data, tmp_path_factory):
    """(config, metrics, directory) of a ViT-VQGAN trained with every published term."""
    folder = tmp_path_factory.mktemp("vit")
    safetensors.numpy.save_file(vgg_arrays(), folder / "vgg.safetensors")
    config = load("vit_vqgan.py:dummy", perceptual_weights=str(folder / "vgg.safetensors"), save_every=5)
    config.loss_weights.perceptual = 0.1
    return config, train.train_codec(config, str(data), str(folder / "out"), str(data)), folder / "out"


def test_every_published_term_of_vit_vqgan_is_in_the_loss(everything):
    config, metrics, out = everything
    last = read_log(out)[-1]
    weights = {name: weight for name, weight in config.loss_weights.items() if weight}
    assert set(weights) == {
        "l2",
        "logit_laplace",
        "codebook",
        "commitment",
        "perceptual",
        "adversarial",
    }
    assert last["loss"] == pytest.approx(
        sum(weight * last[name] for name, weight in weights.items()), rel=1e-3
    )
    assert {"discriminator", "code_perplexity", "dead_codes", "moved_codes", "psnr"} <= set(last)
    heldout = metrics["heldout"]
    assert heldout["pictures"] == 40 and heldout["psnr_db"] > 3
    assert heldout["dead_codes"] == 32 - heldout["codes_used"][0] and heldout["perplexity"][0] >= 1


def test_a_run_that_was_killed_continues_to_the_bit(everything, data, tmp_path, monkeypatch):
    config, _, whole = everything

    class Killed(BaseException):
        pass

    sample, drawn = VqganTraining.sample_batch, []

    def until_killed(self, examples, rng):
        drawn.append(rng)
        if len(drawn) == 7:
            raise Killed
        return sample(self, examples, rng)

    with monkeypatch.context() as patch:
        patch.setattr(VqganTraining, "sample_batch", until_killed)
        with pytest.raises(Killed):
            train.train_codec(config, str(data), str(tmp_path), str(data))
    assert load_codec(tmp_path).fixed_frames == 16  # the codec of the last save can be used
    train.train_codec(config, str(data), str(tmp_path), str(data))
    assert load_codec(tmp_path).hash == load_codec(whole).hash
    assert read_log(tmp_path) == read_log(whole)
    assert not (tmp_path / resume.FILE).exists()


def test_maskgits_net_learns_with_fsq(data, tmp_path):
    config = load("maskgit_vqgan.py:dummy-fsq", steps=60, log_every=10)
    config.optimizer.learning_rate = 1e-2
    config.loss_weights.adversarial = 0.0
    metrics = train.train_codec(config, str(data), str(tmp_path), str(data))
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
    assert load_codec(tmp_path).codebook_size == 32 and metrics["heldout"]["codes_used"][0] > 4


def test_the_choice_of_a_quantiser_is_one_setting(data):
    for name in ("vit_vqgan.py:dummy", "maskgit_vqgan.py:dummy"):
        for kind, has_book in [("normalised", True), ("plain", True), ("fsq", False)]:
            config = load(name)
            config.codec.quantizer.kind = kind
            params = jax.eval_shape(lambda c=config: VqganTraining(c).init(jax.random.key(0), [])[0])
            assert ("quantizer" in params) == has_book


def test_published_recipes_ask_for_the_perceptual_nets_weights():
    for name in ("vit_vqgan.py:base", "maskgit_vqgan.py:256"):
        with pytest.raises(UserError, match=r"names no file.*perceptual=0"):
            VqganTraining(load(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_weights": {"gram": 1.0}}, "There is no loss 'gram'"),
        ({"codec": {"output": "pixels"}}, "needs a decoder that gives distributions"),
        ({"codec": {"image_size": 12}}, "must be a power of two"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(change, message):
    config = load("vit_vqgan.py:dummy")
    config.update(change)
    with pytest.raises(UserError, match=message):
        VqganTraining(config)


def test_a_file_that_is_no_vgg_is_named_with_what_it_lacks(tmp_path):
    arrays = vgg_arrays()
    short = {name: value for name, value in arrays.items() if name != "features.24.weight"}
    safetensors.numpy.save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"short.* has no features\.24\.weight"):
        read_features(tmp_path / "short.safetensors")
    wrong = {**arrays, "features.2.weight": np.zeros((2, 5, 3, 3), np.float32)}
    safetensors.numpy.save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"features\.2\.weight has the shape \[2, 5, 3, 3\]"):
        read_features(tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_features(tmp_path / "none.safetensors")


def test_the_perceptual_distance_is_zero_only_of_equal_pictures(tmp_path):
    safetensors.numpy.save_file(vgg_arrays(), tmp_path / "vgg.safetensors")
    features = read_features(tmp_path / "vgg.safetensors")
    a, b = jax.random.uniform(jax.random.key(0), (2, 2, 16, 16, 3))
    assert perceptual_distance(features, a, a) == 0
    assert perceptual_distance(features, a, b) > perceptual_distance(features, a, a + 0.01 * (b - a)) > 0


def test_the_logit_laplace_density_sums_to_one():
    moved = np.linspace(1e-4, 1 - 1e-4, 200_001)
    pixels = (moved - 0.1) / 0.8
    for location, raw in [(0.0, 0.0), (1.3, -1.0), (-0.7, -9.0)]:
        output = np.broadcast_to(np.float32([location] * 3 + [raw] * 3), (len(moved), 6))
        nats = jax.vmap(picture_losses.logit_laplace)(output, np.repeat(pixels[:, None], 3, axis=1))
        assert np.trapezoid(np.exp(-np.asarray(nats, np.float64)), moved) == pytest.approx(1, abs=0.01)
    location = np.log(0.3 / 0.7)
    assert picture_losses.pixels_of(np.full((1, 6), location), "logits")[0, 0] == pytest.approx(
        0.25, abs=1e-6
    )


def test_blurring_keeps_flat_pictures_and_halves_the_side():
    x = jnp.full((1, 8, 8, 2), 3.0).at[..., 1].set(-1.0)
    pooled = blur_pool(x)
    assert pooled.shape == (1, 4, 4, 2)
    np.testing.assert_allclose(pooled[0, 1:-1, 1:-1], np.broadcast_to([3.0, -1.0], (2, 2, 2)), atol=1e-6)


def test_the_discriminators_published_width():
    shapes = jax.eval_shape(
        Discriminator().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    )["params"]
    assert shapes["Conv_0"]["kernel"].shape == (3, 3, 3, 64)
    assert shapes["Dense_0"]["kernel"].shape == (4 * 4 * 512, 512)


def test_the_penalty_is_the_squared_slope_and_lazy_ones_weigh_as_much():
    config = load("vit_vqgan.py:dummy")
    config.adversary.update({"penalty": 10.0, "penalty_every": 4})
    lazy = PictureAdversary(config)
    lazy._logits = lambda params, pixels: jnp.sum(params * pixels, axis=(1, 2, 3))
    slopes, real = jax.random.normal(jax.random.key(0), (16, 16, 3)), jnp.zeros((BATCH, 16, 16, 3))
    found = [float(lazy._penalty(slopes, real, jnp.int32(step))) for step in range(4)]
    np.testing.assert_allclose(found, [40 * float(jnp.sum(slopes**2)), 0, 0, 0], rtol=1e-5)


def test_the_discriminator_learns_and_the_codec_is_not_pulled_through_its_update():
    adversary = PictureAdversary(load("vit_vqgan.py:dummy", steps=100))
    state = adversary.init(jax.random.key(0))
    real = jnp.ones((BATCH, 16, 16, 3))
    made = real * jax.random.uniform(jax.random.key(1), (BATCH, 16, 16, 1))

    def loss(made, state, step):
        state, figures = adversary.update(state, real, made, step)
        return figures["discriminator"], (state, figures)

    update = jax.jit(jax.grad(loss, has_aux=True))
    seen = []
    for step in range(40):
        slopes, (state, figures) = update(made, state, step)
        seen.append(float(figures["discriminator"]))
    assert seen[-1] < 0.8 * seen[0]
    assert not np.asarray(slopes).any()
    assert np.asarray(jax.grad(lambda made: adversary.term(state, made))(made)).any()
