"""A training that is killed again and again loses nothing."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "chaos.py"
SPEC = importlib.util.spec_from_file_location("chaos", PATH)
chaos = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chaos)


@pytest.mark.long
def test_five_kills_at_random_moments_change_no_bit_of_the_curve(tmp_path):
    result = chaos.chaos(tmp_path, kills=5, seed=1, steps=200)
    assert len(result["kills"]) == 5 and result["lost"] == [] and result["restarted"] == []
    assert result["curves_equal"]


@pytest.mark.long
def test_two_processes_of_which_one_or_both_are_killed_lose_nothing(tmp_path):
    result = chaos.chaos(tmp_path, kills=2, seed=1, processes=2, steps=120)
    assert len(result["kills"]) == 2 and result["lost"] == [] and result["restarted"] == []
    assert result["curves_equal"]
