"""Evaluation: scores, ceilings and examples of all directions, and what happens without data."""

import fake_model
import pytest
from anygpt_tokenizers.cli import UserError

from anygpt_jax.evaluation import evaluate
from anygpt_jax.smallworld.generate import generate

N = 3


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "heldout"
    generate(folder, "heldout", images=N, speech=N, music=N)
    return folder


@pytest.fixture(scope="module")
def result(heldout, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return out, evaluate(fake_model.load(), heldout, N, out)


def test_all_six_directions_have_scores_and_ceilings(result):
    _, table = result
    assert list(table["directions"]) == [
        *("image->text", "text->image", "speech->text", "text->speech", "music->text", "text->music")
    ]
    for direction, entry in table["directions"].items():
        assert entry["n"] == N
        if entry["metric"] == "WER":
            assert entry["ceiling_real"] < 0.3 and entry["score"] > 0.5
        else:
            assert entry["ceiling_real"] > 0.7, direction
            assert entry["score"] < entry["ceiling_real"]


def test_examples_are_the_first_rows_and_their_files_exist(result):
    out, table = result
    for direction, examples in table["examples"].items():
        assert len(examples) == N
        for example in examples:
            file = example["prompt"] if direction.endswith("->text") else example["output"]
            assert (out / file).is_file()
    assert (out / "evaluation.json").is_file()


def test_the_same_seed_gives_the_same_scores_and_known_ceilings_are_not_judged_again(
    heldout, result, tmp_path
):
    _, first = result
    second = evaluate(fake_model.load(), heldout, N, tmp_path, ceilings=first["ceilings"])
    assert second["directions"] == first["directions"]
    assert second["examples"]["speech->text"] == first["examples"]["speech->text"]


def test_missing_or_too_little_data_is_named(heldout, tmp_path):
    with pytest.raises(UserError, match="no held-out data"):
        evaluate(fake_model.load(), tmp_path / "nothing", N, tmp_path)
    with pytest.raises(UserError, match="holds only 3 items of image"):
        evaluate(fake_model.load(), heldout, N + 1, tmp_path)
