"""Stages: done once, continued after an interruption, done again when settings change."""

import pytest

from anygpt_jax.stages import Stages


def run_all(workdir, calls, first=1, second=1, fail=False):
    stages = Stages(workdir, 2)

    def make_first():
        calls.append("first")
        (workdir / "a").mkdir(exist_ok=True)
        return {"made": first}

    def make_second():
        calls.append("second, has rest" if (workdir / "b").exists() else "second")
        (workdir / "b").mkdir(exist_ok=True)
        if fail:
            raise KeyboardInterrupt
        return None

    result = stages.run("first", "First", {"value": first}, make_first, outputs=["a"])
    stages.run("second", "Second", {"value": second}, make_second, after=["first"], outputs=["b"])
    return result, stages


def test_finished_stages_are_skipped_and_keep_their_results(tmp_path):
    calls = []
    run_all(tmp_path, calls)
    result, stages = run_all(tmp_path, calls)
    assert calls == ["first", "second"]
    assert result == {"made": 1}
    assert set(stages.seconds()) == {"first", "second"}


def test_an_interrupted_stage_continues_on_what_is_there(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, calls, fail=True)
    run_all(tmp_path, calls)
    assert calls == ["first", "second", "second, has rest"]


def test_changed_settings_delete_the_outputs_and_rerun_what_builds_on_them(tmp_path):
    calls = []
    run_all(tmp_path, calls)
    run_all(tmp_path, calls, second=2)
    assert calls == ["first", "second", "second"], "only the second, from scratch"
    run_all(tmp_path, calls, first=2, second=2)
    assert calls[3:] == ["first", "second"]


def test_an_interrupted_stage_with_other_settings_starts_from_scratch(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, calls, fail=True)
    run_all(tmp_path, calls, second=2)
    assert calls == ["first", "second", "second"]
