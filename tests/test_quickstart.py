"""The main job, whole, with random codecs and the dummy model: it runs, it resumes, and it reports."""

import json
import shutil

import pytest
from anygpt_tokenizers.cli import UserError, load_config
from random_codecs import save_random_codecs

from anygpt_jax import quickstart as job
from anygpt_jax.report import TARGETS
from anygpt_jax.sampling.generator import Generator
from anygpt_jax.shipped import open_model


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = load_config("configs/tiny.py:dummy")
    for flag in save_random_codecs(tmp_path_factory.mktemp("codecs")):
        name, _, folder = flag.removeprefix("--config.codecs.").partition("=")
        config.codecs[name] = folder
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "quickstart"
    return workdir, job.quickstart(config, workdir)


def test_the_main_job_trains_evaluates_and_reports(finished):
    workdir, result = finished
    assert json.loads((workdir / "report.json").read_text()) == result
    assert set(result["directions"]) == set(TARGETS)
    assert {"world", "tokenize", "pack", "train", "evaluate", "total"} <= set(result["seconds"])
    assert {"text", "image", "speech", "music"} <= set(result["train"]["final_loss"])
    page = (workdir / "report.html").read_text()
    assert "data:image/png" in page and "<audio" in page and "<svg" in page


def test_its_model_directory_is_all_that_sampling_needs(finished, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir / "model", tmp_path / "model")
    answer = Generator(open_model(str(tmp_path / "model"))).run("text|image|a small red circle", tmp_path)
    assert answer.path.is_file()


def test_run_again_it_skips_what_is_done_and_changed_settings_rerun_what_follows(
    finished, config, tmp_path, capsys
):
    workdir, result = finished
    shutil.copytree(workdir, tmp_path / "copy")
    again = job.quickstart(config, tmp_path / "copy")
    assert capsys.readouterr().out.count("done before") == 6
    assert again["directions"] == result["directions"]

    longer = config.copy_and_resolve_references()
    longer.steps = 25
    job.quickstart(longer, tmp_path / "copy")
    out = capsys.readouterr().out
    assert out.count("done before") == 4, "only training and its evaluation run again"
    assert open_model(str(tmp_path / "copy" / "model")).step == 25


def test_a_config_without_a_world_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.world"):
        job.quickstart(load_config("configs/pretrain.py"), tmp_path)
