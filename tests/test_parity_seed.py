"""SEED-2 against transformers' BLIP-2 classes and a few lines of torch, random weights (extra `parity`)."""

import jax
import numpy as np
import pytest
from seed_states import REVERSE, SMALL, random_codec, random_files, random_pictures, stages

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def oracle():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from seed_oracle import Oracle

    return Oracle(*random_files(), SMALL)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return random_codec(tmp_path_factory.mktemp("seed"))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-5, of values of order 1 that are not all alike."""
    assert 0.3 < expected.std() < 3
    assert np.abs(expected - expected.mean(0)).mean() > 0.05, "the same for every picture"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_every_stage_is_the_originals(codec, oracle):
    import torch

    pixels = random_pictures(8)
    ours = stages(codec, pixels)
    features = oracle.features(pixels)
    queries = oracle.queries(features)
    assert_close(ours["features"], features.numpy())
    assert_close(ours["queries"], queries.numpy())
    assert_close(ours["latents"], oracle.latents(queries).numpy())
    codes = np.random.default_rng(1).integers(0, SMALL.codebook_size, (8, 32))
    assert_close(codec.embed(codes), oracle.embed(torch.as_tensor(codes)).numpy())


def test_the_reverse_q_former_is_the_originals(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from seed_oracle import Oracle

    files = random_files(REVERSE)
    codec = random_codec(tmp_path, files)
    codes = np.random.default_rng(1).integers(0, REVERSE.codebook_size, (8, 32))
    assert_close(codec.embed(codes), Oracle(*files, REVERSE).embed(torch.as_tensor(codes)).numpy())


def test_codes_of_200_pictures_are_the_originals(codec, oracle):
    pixels = random_pictures(200, seed=2)
    expected = oracle.quantize(oracle.latents(oracle.queries(oracle.features(pixels)))).numpy()
    assert len(np.unique(expected)) > 100, "too few codes are used to say much"
    assert (expected != expected[0]).mean() > 0.3, "pictures hardly change the codes"
    np.testing.assert_array_equal(codec.encode(pixels)[..., 0], expected)


def test_the_original_is_causal_too_as_it_is_called_here(codec, oracle):
    import torch

    features = oracle.features(random_pictures(2))
    changed = torch.randn(1, 32, SMALL.qformer_dim)
    changed[:, :20] = 0.0
    difference = (oracle.queries(features, changed) - oracle.queries(features)).abs().numpy()
    assert difference[:, :20].max() == 0 and difference[:, 20:].max() > 0.1


def test_a_blip2_directory_gives_the_vision_tower_of_lavis_file(codec, oracle, tmp_path):
    from anygpt_tokenizers.seed_importer import import_seed
    from seed_states import HEADS, write_files

    oracle.vision.save_pretrained(tmp_path / "blip2")
    quantizer, _ = write_files(tmp_path / "files", random_files())
    other, _ = import_seed(quantizer, tmp_path / "blip2", tmp_path / "codec", num_heads=HEADS)
    assert other.hash == codec.hash


def test_bfloat16_keeps_most_codes(oracle, codec, tmp_path):
    pixels = random_pictures(32, seed=3)
    other = random_codec(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    same = (other.encode(pixels) == codec.encode(pixels)).mean()
    assert same > 0.5
    assert {leaf.dtype.name for leaf in jax.tree.leaves(other.params)} == {"bfloat16"}
