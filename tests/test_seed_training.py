"""Both stages of SEED's training: that they learn, what stays as it is, and that codes do not collapse."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import seed_examples, seed_text, train
from anygpt_tokenizers.cli import UserError, load_config
from anygpt_tokenizers.codec import load_codec
from anygpt_tokenizers.optimizer import make_optimizer
from anygpt_tokenizers.safetensors_file import map_arrays
from anygpt_tokenizers.seed import SeedCodec
from anygpt_tokenizers.seed_net import SeedSpec
from anygpt_tokenizers.seed_stage1 import SeedStage1, SeedStage1Training, contrastive_loss
from anygpt_tokenizers.seed_stage2 import SeedStage2Training
from PIL import Image, ImageDraw

CONFIG = "configs/tokenizers/seed.py"
BATCH = 12  # doesn't divide among the eight devices of the tests, for which programs take long to compile
COLORS = ("red", "green", "blue", "black", "orange", "purple", "cyan", "brown")
PARTS = ("vision/", "vision_norm/", "qformer/")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """96 pictures of discs on white, each captioned with its colour."""
    folder, rng, rows = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for index in range(96):
        color, (x, y), radius = COLORS[index % 8], rng.uniform(10, 22, 2), rng.uniform(5, 9)
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        image.save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", np.tile(np.asarray(image)[16, 16] / 255, 64).astype(np.float32))
        rows.append({"text": f"a {color} disc", "image": f"{index}.png", "embedding": f"{index}.npy"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The directory of a codec with random weights, for its vision tower."""
    config = load_config(f"{CONFIG}:stage2-dummy")
    params = seed_examples.fresh_params(seed_examples.spec_of(config.codec), jax.random.key(5))
    folder = tmp_path_factory.mktemp("start")
    seed_examples.Unsaved(seed_examples.codec_config(config, "seed2"), params).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stage1(data, start, tmp_path_factory):
    """(metrics, directory) of a first stage whose vision tower was kept."""
    config = dummy("stage1")
    config.update({"init_from": str(start), "init_parts": ("vision",), "freeze_vision": True, "steps": 100})
    out = tmp_path_factory.mktemp("stage1")
    return train.train_codec(config, str(data), str(out)), out


def dummy(stage: str):
    config = load_config(f"{CONFIG}:{stage}-dummy")
    config.batch_size = BATCH
    return config


def stage2_config(stage1, **changes):
    config = dummy("stage2")
    config.update({"init_from": str(stage1[1]), **changes})
    return config


@pytest.fixture(scope="module")
def stage2(data, stage1, tmp_path_factory):
    """(metrics, directory) of a second stage that moves idle codes."""
    out = tmp_path_factory.mktemp("stage2")
    return train.train_codec(stage2_config(stage1), str(data), str(out)), out


def logged(out: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (out / "train_log.jsonl").read_text().splitlines()]


def test_stage_1_learns_to_find_captions(stage1):
    metrics, out = stage1
    loss = logged(out, "loss")
    assert loss[-1] < 0.75 * loss[0]
    heldout = metrics["heldout"]
    assert heldout["caption_of_picture"] > 3 * heldout["chance"]
    assert heldout["picture_of_caption"] > 3 * heldout["chance"]


def test_a_trained_stage_1_compares_any_pictures_and_texts(stage1, data):
    model = SeedStage1.from_pretrained(stage1[1])
    pixels = np.stack([np.asarray(Image.open(data / f"{index}.png")) for index in range(8)])
    pictures, texts = model.picture_vectors(pixels), model.text_vectors([f"a {c} disc" for c in COLORS])
    for vectors in (pictures, texts):
        assert vectors.shape == (8, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_stage_1_keeps_the_vision_tower_and_trains_the_rest(stage1, start):
    before, after = (map_arrays(folder / "weights.safetensors") for folder in (start, stage1[1]))
    for name in after:
        if name in before:
            assert np.array_equal(before[name], after[name]) == name.startswith("vision/"), name


def test_stage_1_can_train_the_vision_tower_too(data):
    training = SeedStage1Training(load_config(f"{CONFIG}:stage1-dummy"))
    params, state = training.init(jax.random.key(0), [])
    assert "vision" in params and not state


def test_every_term_of_stage_2_falls(stage2):
    _, out = stage2
    for name in ("loss", "reconstruction", "distill", "vq"):
        values = logged(out, name)
        assert values[-1] < 0.7 * values[0], name


def test_stage_2_gives_a_codec_with_stage_1s_frozen_parts(stage1, stage2, data):
    codec = load_codec(stage2[1])
    assert isinstance(codec, SeedCodec)
    codes = codec.encode(np.stack([codec.read_file(data / f"{index}.png") for index in range(9)]))
    assert codes.shape == (9, 32, 1) and codec.embed(codes).shape == (9, 192)
    before, after = (map_arrays(out / "weights.safetensors") for _, out in (stage1, stage2))
    frozen = [name for name in before if name.startswith(PARTS)]
    assert frozen
    for name in frozen:
        np.testing.assert_array_equal(before[name], after[name])
    assert not any(name.startswith("reconstruction") for name in after)


def test_finished_stages_are_left_as_they_are(stage1, stage2, data, start):
    first = dummy("stage1")
    first.update({"init_from": str(start), "init_parts": ("vision",), "freeze_vision": True, "steps": 100})
    for config, (metrics, out) in [(first, stage1), (stage2_config(stage1), stage2)]:
        assert train.train_codec(config, str(data), str(out)) == metrics
    with pytest.raises(UserError, match="holds a finished run whose "):  # stage 1 isn't lost to stage 2
        train.train_codec(stage2_config(stage1), str(data), str(stage1[1]))


def test_codes_collapse_unless_idle_ones_are_moved(stage1, stage2, data, tmp_path):
    left_alone = train.train_codec(stage2_config(stage1, restart_after=0), str(data), str(tmp_path))
    figures = [metrics["train"] for metrics in (left_alone, stage2[0])]
    assert figures[0]["dead_codes"] > 32 and figures[0]["code_entropy_bits"] < 4.5
    assert figures[1]["dead_codes"] <= 6 and figures[1]["code_entropy_bits"] > 5.0
    assert left_alone["heldout"]["codes_used"][0] < 0.5 * stage2[0]["heldout"]["codes_used"][0]
    assert len(logged(tmp_path, "dead_codes")) == len(logged(tmp_path, "code_entropy_bits")) == 8


def test_the_published_sizes_are_the_published_models():
    for stage in ("stage1", "stage2"):
        config = load_config(f"{CONFIG}:{stage}")
        assert seed_examples.spec_of(config.codec) == SeedSpec()


def test_embeddings_are_read_from_files_beside_the_pictures(stage1, data):
    config = stage2_config(stage1)
    config.teacher.update({"field": "embedding", "function": ""})
    training = SeedStage2Training(config)
    batch = training.sample_batch(training.read_examples(str(data)), np.random.default_rng(0))
    assert batch["pixels"].shape == (BATCH, 32, 32, 3) and batch["embeddings"].shape == (BATCH, 192)
    middle = batch["pixels"][:, 16, 16] / 255
    np.testing.assert_allclose(batch["embeddings"][:, :3], middle, atol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_rows_without_a_picture_or_a_caption_that_can_be_used_are_left_out(data, tmp_path, capsys, keep):
    good = {"image": str(data / "0.png"), "text": "one\u2028line"}
    bad = [{**good, "image": None}, {**good, "text": None}, {**good, "text": "half \ud83d"}]
    lines = [json.dumps(row, ensure_ascii=row is not good) for row in (bad[2], good, *bad[:2])]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), "utf-8")
    config = dummy("stage1")
    config.keep_in_memory = keep
    examples = seed_examples.read_pictures(config, tmp_path)
    drawn = seed_examples.draw(config, examples, np.random.default_rng(0))
    assert len(drawn) == BATCH and {example.caption for example in drawn} == {good["text"]}
    assert "1 of 2 files that can't be used; the" in (said := capsys.readouterr().err)
    assert r"0.png: a text that has half a character ('half \ud83d')" in said
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**good, "text": 5}))
    with pytest.raises(UserError, match="line 1: 'text' is 5; it must be a text, or null"):
        seed_examples.read_pictures(config, tmp_path)


def test_wrong_settings_get_one_sentence(stage1, data, tmp_path):
    with pytest.raises(UserError, match="import-seed"):
        train.train_codec(load_config(f"{CONFIG}:stage1"), str(data), str(tmp_path / "a"))
    with pytest.raises(UserError, match="goes on from stage 1"):
        train.train_codec(stage2_config(stage1, init_from=""), str(data), str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"vision/positions has the shape \[17, 16\]"):
        config = stage2_config(stage1)
        config.codec.image_size = 64
        train.train_codec(config, str(data), str(tmp_path / "c"))
    config = stage2_config(stage1)
    config.teacher.field = "embedding"
    with pytest.raises(UserError, match="give either"):
        SeedStage2Training(config)
    config.teacher.function, config.flip = "", True
    with pytest.raises(UserError, match="whole pictures"):
        SeedStage2Training(config)
    config.update({"flip": False})
    config.codec.embed_dim = 7
    with pytest.raises(UserError, match=r"the shape \[7\]"):
        SeedStage2Training(config).read_examples(str(data))
    with pytest.raises(UserError, match="no SentencePiece model"):
        seed_text.Captions(8, "nowhere.model")
    with pytest.raises(UserError, match="no first stage"):
        SeedStage1.from_pretrained(make_other(tmp_path / "d"))


def make_other(folder: Path) -> Path:
    seed_examples.Unsaved({"type": "seed2", "storage_dtype": "float32"}, {"a": np.zeros(1)}).save_pretrained(
        folder
    )
    return folder


def test_captions_become_bytes_or_pieces():
    rows = seed_text.Captions(6)(["ab", "", "a longer text"])
    assert rows.tolist()[:2] == [[1, 97 + 2, 98 + 2, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert (rows[2] > 0).all()
    pieces = seed_text.Captions(16, "anygpt_jax/assets/smallworld.model")
    row = pieces(["a large red circle"])[0]
    assert row[0] == 1 and row.max() < pieces.vocab_size and 1 < (row > 0).sum() < 16
    for captions in (seed_text.Captions(6), pieces):
        with pytest.raises(UserError, match=r"'a\\ud800b' has half a surrogate pair"):
            captions(["fine", "a\ud800b"])


def test_text_shares_the_q_formers_attention_and_ignores_padding(start):
    spec = seed_examples.spec_of(load_config(f"{CONFIG}:stage2-dummy").codec)
    qformer = seed_examples.read_parts(start, ("qformer",), spec)["qformer"]
    reader = seed_text.TextReader(258, 16, 2, 2, 32, jnp.dtype("float32"))
    tokens = jnp.asarray(seed_text.Captions(6)(["ab", "abcdefgh"]))
    params = jax.jit(reader.init)(jax.random.key(1), tokens)["params"]
    own = seed_text.own_params(params)
    joined = seed_text.with_shared(own, qformer)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert not any(name.startswith("self_") for name in own["pairs"]["cross"])
    assert joined["pairs"]["plain"]["self_value"] is qformer["pairs"]["plain"]["self_value"]
    copied = seed_text.with_feed_forward_of(own, qformer)
    np.testing.assert_array_equal(
        copied["pairs"]["cross"]["up"]["kernel"], qformer["pairs"]["cross"]["up"]["kernel"]
    )

    read = jax.jit(lambda params: reader.apply({"params": params}, tokens))
    before = read(joined)
    after = read({**joined, "tokens": joined["tokens"].at[seed_text.PAD].add(5.0)})
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_the_contrastive_loss_is_the_smoothed_cross_entropy_of_both_directions():
    scores = np.random.default_rng(0).normal(0, 3, (4, 4)).astype(np.float32)
    expected = []
    for rows in (scores, scores.T):
        logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        expected.append(np.mean(-0.9 * np.diag(logs) - 0.1 * logs.mean(1)))
    actual = contrastive_loss(jnp.asarray(scores), jnp.eye(4, dtype=bool), 0.1)
    np.testing.assert_allclose(actual, np.mean(expected), rtol=1e-5)


def test_crops_keep_the_share_and_mirror_half():
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    widths, mirrored = [], 0
    for _ in range(200):
        part = seed_examples.cropped(ramp, 32, (0.5, 1.0), True, rng).astype(int)
        assert part.shape == (32, 32, 3)
        widths.append(abs(part[0, -1, 0] - part[0, 0, 0]) / 62)
        mirrored += part[0, 0, 0] > part[0, -1, 0]
    assert min(widths) > 0.55 and max(widths) <= 1 and 70 < mirrored < 130
    np.testing.assert_array_equal(seed_examples.cropped(ramp, 64, (1.0, 1.0), False, rng), ramp)


def test_stacked_biases_and_norms_do_not_decay():
    optimizer = make_optimizer(load_config(f"{CONFIG}:stage1"))
    params = {name: jnp.ones((2, 2)) for name in ("kernel", "bias", "query_bias", "scale", "queries")}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert {name for name, update in updates.items() if update.any()} == {"kernel", "queries"}
