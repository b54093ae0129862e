"""The compile check reads what the compiler writes.

With libtpu installed it compiles for real slices, with JAX's CUDA plugin for GPUs.
"""

import functools
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from anygpt_tokenizers.cli import UserError, load_config

from anygpt_jax import sharding, vocabulary
from anygpt_jax.compilation import decode_check, hlo, slices
from anygpt_jax.compilation.codec_check import (
    check_seed_encode,
    check_sound,
    check_unclip_decode,
)
from anygpt_jax.compilation.decode_check import check_decode
from anygpt_jax.compilation.report import DoesNotFit
from anygpt_jax.compilation.train_check import advice, check_train_step, kernel_flops_of
from anygpt_jax.training import loop

ROOT = Path(__file__).parents[1]
PRETRAIN = ROOT / "configs/pretrain.py"
SLICES = runpy.run_path(str(PRETRAIN))["SLICES"]

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


def test_a_gpus_attention_is_a_kernel():
    cost = hlo.cost_of(PROGRAM.replace("tpu_custom_call", "__cudnn$fmhaScaleBiasSoftmaxBackward"))
    assert cost.kernels == 32


def test_a_reduce_scatter_counts_what_it_sends():
    scattered = (
        "%y.1 = bf16[512,128]{1,0} copy(%w)\n  %rs.1 = bf16[8,128]{1,0} reduce-scatter(%y.1), to_apply=%a"
    )
    cost = hlo.cost_of(PROGRAM.replace("%p0 = ", f"{scattered}\n  %p0 = "))
    assert cost.collectives["reduce-scatter"] == [1, 512 * 128 * 2]


def test_a_sum_fused_with_its_slice_is_a_reduce_scatter():
    fused = (
        "%y.1 = bf16[512,128]{1,0} copy(%w)\n"
        "  %fusion.9 = bf16[8,128]{1,0} fusion(%y.1), kind=kCustom, calls=%all-reduce-scatter.3.clone"
    )
    cost = hlo.cost_of(PROGRAM.replace("%p0 = ", f"{fused}\n  %p0 = "))
    assert cost.collectives["reduce-scatter"] == [1, 512 * 128 * 2]


def test_a_gather_that_goes_on_beside_computing_counts_once():
    gather = "bf16[512,128]{1,0} all-gather(%q), channel_id=7"
    start = (
        f"%started.1 (q: bf16[8,128]) -> (bf16[512,128]) {{\n  %g.1 = {gather}\n"
        '  ROOT %c.1 = (bf16[512,128]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"\n}\n\n'
        f"%during.1 (q: bf16[8,128]) -> (bf16[512,128]) {{\n  ROOT %g.2 = {gather}\n}}\n\n"
    )
    calls = (
        "%s.1 = (bf16[512,128]) fusion(%w), kind=kCustom, calls=%started.1\n"
        "  %f.1 = (bf16[512,128]) fusion(%s.1), kind=kCustom, calls=%during.1\n"
    )
    cost = hlo.cost_of((start + PROGRAM[PROGRAM.index("%body") :]).replace("%p0 = ", f"{calls}  %p0 = "))
    launches, size = hlo.cost_of(PROGRAM).collectives["all-gather"]
    assert cost.collectives["all-gather"] == [launches + 1, size + 512 * 128 * 2]


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.cost_of("nothing")


@pytest.mark.parametrize("count", ["0", "two", "2*2"])
def test_an_impossible_number_of_slices_is_named(count):
    with pytest.raises(UserError, match="number of slices"):
        slices.devices_of(f"v5e:2x2*{count}")


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", ""])
def test_an_unknown_slice_is_named(topology):
    with pytest.raises(UserError, match="There is no topology"):
        slices.chip_of(topology)


def test_the_command_says_what_is_missing_before_compiling_for_any_topology():
    command = [sys.executable, "-m", "anygpt_jax.compile_check", "--config=configs/pretrain.py"]
    second_unknown = ["--topology=v5e:1x1", "--topology=v9:1x1"]
    unknown = "There is no topology 'v9:1x1'|.*this needs libtpu"
    for arguments, said in [([], "Give at least one topology"), (second_unknown, unknown)]:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and done.stdout == ""
        assert "Traceback" not in done.stderr
        assert re.match(f"error: ({said})", done.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize("topology", ["h100:9", "h100:0", "h200:two", "h100:8*2"])
def test_an_impossible_node_of_gpus_is_named(topology):
    with pytest.raises(UserError, match="no node of GPUs"):
        slices.devices_of(topology)


@pytest.mark.parametrize("argument", ["", "stage2", *SLICES])
def test_the_pretraining_configs_suit_the_devices_that_they_are_for(argument):
    config = load_config(f"{PRETRAIN}:{argument}" if argument else str(PRETRAIN))
    rows, length = SLICES.get(argument, {}).get("data.batch_size", 512), 4096 if argument in SLICES else 4608
    assert (config.data.batch_size, config.pack.seq_len) == (rows, length)
    devices = {"v5e-256": 256, "8xh100": 8, "h200": 1}.get(argument, 64)
    fsdp = config.mesh.fsdp
    mesh = SimpleNamespace(shape={"data": devices // fsdp, "fsdp": fsdp, "tensor": 1})
    assert config.mesh.data in (-1, mesh.shape["data"])
    model = loop.model_config(config.model, vocabulary.published("base"))
    sharding.check_divisible(model, mesh, rows, config.optimizer.accumulation, config.rules)


def knob(limit, mesh=(4, 2, 1), state=96, gradients=32, **changes):
    """What is advised where `limit` bytes can be used; the state's and the gradients' are a device's."""
    config = dummy()
    config.model.update(num_kv_heads=4)
    config.update_from_flattened_dict({"data.batch_size": 64, **changes})
    model = loop.model_config(config.model, vocabulary.published("base"))
    mesh = SimpleNamespace(shape=dict(zip(sharding.MESH_AXES, mesh, strict=True)))
    return advice(config, model, mesh, limit, state, gradients)


def test_a_large_state_is_advised_to_be_divided_within_each_slice():
    assert knob(100) == "--config.mesh.fsdp=8 --config.mesh.data=1"
    assert knob(100, **{"mesh.slices": 2}) == "--config.mesh.fsdp=4 --config.mesh.data=2"


def test_where_state_and_gradients_alone_are_too_large_only_devices_are_advised():
    undivided = [{"mesh": (1, 8, 1)}, {"mesh.slices": 4}, {"rules": sharding.TWO_STEP_RULES}, {"state": 900}]
    for changes in undivided:
        assert knob(100, **{"model.remat_policy": "minimal", **changes}).startswith("more devices in a slice")


def test_the_advice_goes_on_while_there_is_a_knob():
    large = {"limit": 1000, "mesh": (1, 8, 1)}
    assert knob(**large, **{"model.remat_policy": "minimal"}) == "--config.model.remat_policy=full"
    assert knob(**large) == "--config.optimizer.accumulation=8"
    large["optimizer.accumulation"] = 8
    assert knob(**large, **{"model.loss_tile": 512}) == "--config.model.loss_tile=128"
    meshes = "--config.mesh.tensor=2 --config.mesh.fsdp=4 --config.optimizer.accumulation=16"
    assert knob(**large) == meshes
    assert knob(**{**large, "mesh": (1, 2, 4), "optimizer.accumulation": 32}).startswith("shorter rows")


def test_accumulation_does_not_count_as_recomputed_attention():
    model = loop.model_config(dummy().model, vocabulary.published("base"))
    once = 2 * 4 * 128 * 256**2 * 4
    assert kernel_flops_of(model, 4, 256, launches=6) == once * 9
    assert kernel_flops_of(model, 4, 256, launches=8) == once * 11


@pytest.mark.parametrize("topology", ["v5e:8x8", "v5e:2x2*2"])
def test_a_slice_that_the_sampler_cannot_be_divided_over_is_named(monkeypatch, topology):
    monkeypatch.setattr(decode_check, "devices_of", lambda _: [None] * 64)
    with pytest.raises(UserError, match=r"one slice of a divisor of 32 devices"):
        check_decode(load_config(str(PRETRAIN)), topology, rows=8, length=64)


def test_a_file_that_cannot_be_written_is_said_before_compiling(tmp_path):
    command = [sys.executable, "-m", "anygpt_jax.compile_check", f"--config={PRETRAIN}", "--topology=v5e:2x2"]
    for flag in [f"--json={tmp_path}", f"--hlo={tmp_path}/missing/step.txt"]:
        done = subprocess.run([*command, flag], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert done.stderr == f"error: {flag} cannot be written; give a file's path.\n"


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="JAX's CUDA plugin is not installed"
)


def dummy():
    config = load_config(str(PRETRAIN)).unlock()
    config.model.update(preset="dummy", head_dim=128, dtype="bfloat16", remat_policy="full", loss_tile=128)
    config.data.batch_size, config.pack.seq_len, config.optimizer.accumulation = 4, 256, 1
    config.mesh = {"data": 2, "fsdp": 2, "tensor": 1}
    return config


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x5", "v5e:1xx", "v4:3x3x3"])
def test_a_shape_that_no_slice_has_is_named_and_nothing_is_to_be_installed(topology):
    with pytest.raises(UserError, match=rf"no slice '{topology}' \(.*such as {topology[:2]}\w?:") as refused:
        slices.devices_of(topology)
    assert "pip" not in str(refused.value)


@needs_libtpu
def test_a_small_model_compiles_for_a_slice_with_splash_attention():
    report, text = check_train_step(dummy(), "v5e:2x2")
    assert report["fits"] and report["devices"] == 4
    assert report["attention"] == "splash" and report["kernel_launches"] == 8
    assert report["cycles"] > 0 and 0 < report["mfu"] < 1
    assert "ENTRY" in text


@needs_libtpu
def test_what_does_not_fit_is_said_with_a_knob(monkeypatch):
    chip = slices.Chip(20 * 2**20, 197e12, 1.5e9, 819e9)
    monkeypatch.setitem(slices.CHIPS, "v5e", chip)
    report, _ = check_train_step(dummy(), "v5e:2x2")
    assert not report["fits"]
    assert report["advice"] == "--config.mesh.fsdp=4 --config.mesh.data=1"


@needs_libtpu
def test_what_the_compiler_refuses_is_said_with_a_knob():
    config = dummy()
    config.data.batch_size, config.pack.seq_len = 4096, 4096
    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(DoesNotFit, match=r"try --config.optimizer.accumulation=4096") as refused:
        check_train_step(config, "v5e:1x1")
    assert not refused.value.report["fits"]


def command(*arguments, **sizes):
    """The command on a config whose model is the test's; `sizes` as data__batch_size=4."""
    fields = {"model.preset": "dummy", "model.head_dim": 128, "model.remat_policy": "full"}
    fields |= {"model.loss_tile": 128, **{name.replace("__", "."): value for name, value in sizes.items()}}
    line = [sys.executable, "-m", "anygpt_jax.compile_check", f"--config={PRETRAIN}", *arguments]
    line += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_"))}
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)


@needs_libtpu
def test_the_command_on_the_plain_config_compiles_for_64_chips_and_writes_what_it_found(tmp_path):
    files = f"--hlo={tmp_path}/step.txt", f"--json={tmp_path}/reports.json"
    done = command("--topology=v5e:8x8", *files)
    assert done.returncode == 0, done.stderr
    assert "64 devices (data 2 × fsdp 32 × tensor 1), 512 rows of 4608 tokens" in done.stdout
    assert "GiB: fits" in done.stdout and "Source Location Trace" not in done.stderr
    (report,) = json.loads((tmp_path / "reports.json").read_text())
    assert report["fits"] and report["devices"] == 64 and report["topology"] == "v5e:8x8"
    assert 0 < report["mfu"] < 1 and report["argument_bytes"] > 0
    text = (tmp_path / "step.txt").read_text()
    assert text.startswith("HloModule") and hlo.cost_of(text).cycles == report["cycles"]


TOO_LARGE = {"data__batch_size": 4096, "pack__seq_len": 4096, "optimizer__accumulation": 1, "mesh__fsdp": 1}


@needs_libtpu
def test_the_command_exits_with_1_where_the_memory_is_too_small(tmp_path):
    done = command("--topology=v5e:1x1", f"--json={tmp_path}/reports.json", **TOO_LARGE)
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT; try --config.optimizer.accumulation=4096" in done.stdout
    (report,) = json.loads((tmp_path / "reports.json").read_text())
    assert not report["fits"] and report["advice"] == "--config.optimizer.accumulation=4096"


@needs_libtpu
def test_the_command_keeps_the_reports_made_before_a_topology_that_does_not_suit_the_config(tmp_path):
    topologies = ["--topology=v5e:1x1", "--topology=v5e:2x2*2"]
    done = command(*topologies, f"--json={tmp_path}/reports.json", **TOO_LARGE)
    assert done.returncode == 2 and "belong to 2 slices" in done.stderr
    (report,) = json.loads((tmp_path / "reports.json").read_text())
    assert report["topology"] == "v5e:1x1"


@needs_libtpu
def test_two_slices_are_one_mesh_whose_data_axis_joins_them():
    config = dummy()
    config.data.batch_size = 8
    config.mesh = {"data": 2, "fsdp": 4, "tensor": 1, "slices": 2}
    report, _ = check_train_step(config, "v5e:2x2*2")
    assert report["devices"] == 8 and report["fits"]
    config.mesh.slices = 1
    with pytest.raises(UserError, match=r"belong to 2 slices but config.mesh.slices = 1"):
        check_train_step(config, "v5e:2x2*2")


@needs_libtpu
def test_the_sampler_compiles_for_a_slice():
    config = dummy()
    config.model.update(num_heads=4, num_kv_heads=4)
    report, text = check_decode(config, "v5e:2x2", rows=2, length=64)
    assert report["fits"] and report["mesh"]["tensor"] == 4
    assert report["seconds_per_token"] > report["roofline_seconds_per_token"] > 0
    assert "while" in text


@needs_cuda_plugin
@pytest.mark.parametrize(("remat_policy", "launches"), [("full", 6), ("minimal", 4)])
def test_a_small_model_compiles_for_gpus_with_cudnns_attention(remat_policy, launches):
    config = dummy()
    config.model.remat_policy = remat_policy
    report, text = check_train_step(config, "h100:4")
    assert report["fits"] and report["devices"] == 4
    assert report["attention"] == "cudnn" and report["kernel_launches"] == launches
    assert "cycles" not in report and "estimates no time" in report["prediction"]
    assert "ENTRY" in text


@needs_cuda_plugin
def test_sampler_and_codecs_compile_for_gpus():
    config = dummy()
    config.model.update(num_heads=4, num_kv_heads=4)
    report, _ = check_decode(config, "h100:4", rows=2, length=64)
    assert report["fits"] and report["roofline_seconds_per_token"] > 0
    report, _ = check_sound("EnCodec", "encode", "h200:1", rows=1, seconds=1)
    assert report["fits"] and "seconds" not in report


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:1x1", "v4:1x1x1"])
def test_a_codec_compiles_for_one_chip(chip):
    report, _ = check_sound("SpeechTokenizer", "encode", chip, rows=64, seconds=10)
    assert report["fits"] and report["devices"] == 1
    assert report["seconds_of_sound"] > report["seconds"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("check", [check_seed_encode, functools.partial(check_unclip_decode, steps=20)])
def test_the_published_image_codec_compiles_for_one_chip(check):
    report, _ = check("v5e:1x1", rows=4)
    assert report["fits"] and report["devices"] == 1 and report["seconds"] > 0


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-64", "v4-128", "v5p-128"])
def test_the_recommended_settings_fit_their_slice(name):
    report = check_recommended(name)
    assert report["devices"] == 64 and report["attention"] == "splash"
    assert report["fits"] and report["mfu"] > 0.4


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("8xh100", 8), ("h200", 1)])
def test_the_recommended_settings_fit_their_gpus(name, devices):
    report = check_recommended(name)
    assert report["devices"] == devices and report["attention"] == "cudnn" and report["fits"]


def check_recommended(name):
    topology = runpy.run_path(str(PRETRAIN))["TOPOLOGIES"][name]
    return check_train_step(load_config(f"{PRETRAIN}:{name}"), topology)[0]
