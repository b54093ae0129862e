"""The compile check reads what the compiler writes; with libtpu installed it compiles for a real slice."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from anygpt_tokenizers.cli import UserError, load_config

from anygpt_jax.compilation import hlo, slices
from anygpt_jax.compilation.train_check import check_train_step

ROOT = Path(__file__).parents[1]

PROGRAM = """\
HloModule jit_step

%body.1 (arg.1: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %arg.1 = (s32[], bf16[64,128]{1,0}) parameter(0)
  %all-gather.3 = bf16[64,256]{1,0} all-gather(%x), backend_config={"estimated_cycles":"7"}
  %kernel.1 = bf16[64,128]{1,0} custom-call(%y), custom_call_target="tpu_custom_call"
  ROOT %fusion.2 = (s32[], bf16[64,128]{1,0}) fusion(%arg.1), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/layers_3/dot"}, backend_config={"estimated_cycles":"100"}
}

%condition.1 (arg.2: (s32[], bf16[64,128])) -> pred[] {
  %limit = s32[] constant(32)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main.9 (p0: bf16[64,128]) -> bf16[64,128] {
  %p0 = bf16[64,128]{1,0} parameter(0)
  %while.1 = (s32[], bf16[64,128]{1,0}) while(%tuple), condition=%condition.1, body=%body.1
  ROOT %copy.1 = f32[64,128]{1,0} copy(%w), backend_config={"estimated_cycles":"11"}
}
"""


def test_a_loops_body_counts_once_per_trip():
    cost = hlo.cost_of(PROGRAM)
    assert cost.cycles == 32 * 107 + 11
    assert cost.kernels == 32
    assert cost.collectives == {"all-gather": [32, 32 * 64 * 256 * 2]}
    assert cost.by_operation["jit(step)/layers_/dot"] == 3200
    assert cost.arrays["f32[64,128]"] == 64 * 128 * 4


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.cost_of("nothing")


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", ""])
def test_an_unknown_slice_is_named(topology):
    with pytest.raises(UserError, match="There is no topology"):
        slices.chip_of(topology)


def test_the_command_says_what_is_missing():
    command = [sys.executable, "-m", "anygpt_jax.compile_check", "--config=configs/pretrain.py"]
    for arguments in [[], ["--topology=v9:1x1"]]:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def dummy():
    config = load_config(str(ROOT / "configs/pretrain.py")).unlock()
    config.model.update(preset="dummy", head_dim=128, dtype="bfloat16", remat_policy="full", loss_tile=128)
    config.data.batch_size, config.pack.seq_len = 4, 256
    config.mesh = {"data": 2, "fsdp": 2, "tensor": 1}
    return config


@needs_libtpu
def test_a_small_model_compiles_for_a_slice_with_splash_attention():
    report, text = check_train_step(dummy(), "v5e:2x2")
    assert report["fits"] and report["devices"] == 4
    assert report["attention"] == "splash" and report["kernel_launches"] == 8
    assert report["cycles"] > 0 and 0 < report["mfu"] < 1
    assert "ENTRY" in text


@needs_libtpu
def test_what_does_not_fit_is_said_with_a_knob(monkeypatch):
    chip = slices.Chip(2**20, 197e12, 1.5e9)
    monkeypatch.setitem(slices.CHIPS, "v5e", chip)
    report, _ = check_train_step(dummy(), "v5e:2x2")
    assert not report["fits"]
    assert report["advice"] == "--config.mesh.fsdp=4 --config.mesh.data=1"
