"""Training of VQGANs: every published term, a run that was killed, what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers import resume, train
from anygpt_tokenizers.cli import UserError, load_config
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.vqgan_training import VqganTraining
from PIL import Image, ImageDraw
from training_media import read_log
from vgg_weights import vgg_arrays

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"
CROP_MISTAKES = ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (2.0, 3.0), (0.5,), (0.5, "1"))
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
    assert {"discriminator", "code_entropy_bits", "dead_codes", "moved_codes", "psnr"} <= set(last)
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
    config = config.copy_and_resolve_references().unlock()
    config.evaluate_pictures = 3  # changes no step
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
        ({"log_every": 0}, "config.log_every is 0; it must be a whole number above 0"),
        ({"save_every": 0}, "config.save_every is 0"),
        ({"batch_size": 0}, "config.batch_size is 0"),
        ({"evaluate_pictures": 0}, "config.evaluate_pictures is 0"),
        ({"steps": -1}, "config.steps is -1; it must be a whole number above 0 or 0"),
        ({"codec": {"patch_size": 0}}, "config.codec.patch_size is 0"),
        *(({"crop_scale": scale}, "crop_scale is .* above 0 and at most 1") for scale in CROP_MISTAKES),
        ({"loss_weights": {"gram": 1.0}}, "There is no loss 'gram'"),
        ({"codec": {"output": "pixels"}}, "needs a decoder that gives distributions"),
        ({"codec": {"image_size": 12}}, "must be a power of two"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(change, message, data, tmp_path):
    config = load("vit_vqgan.py:dummy")
    config.update(change)
    with pytest.raises(UserError, match=message):
        train.train_codec(config, str(data), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
