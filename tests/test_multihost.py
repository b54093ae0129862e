"""Real processes: together they train like one, any number of them resumes, and an odd one is named."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import multihost_config
import pytest
from anygpt_tokenizers.cli import UserError
from test_packing import pack
from test_training import assert_resumed

from anygpt_jax import distributed
from anygpt_jax.training import loop
from anygpt_jax.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "model.preset": "dummy",
    "optimizer.name": "adamw",
    "optimizer.warmup": 0.0,
    "optimizer.final": 1.0,
    "log_every": 1,
    "checkpoint.every": 10,
    "data.batch_size": 8,
    "mesh.data": -1,
    "peak_flops": 1e12,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    pack(root, [7, 9, 12, 14] * 40)
    return root / "packed"


def _fields(settings):
    return SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}


def _train_here(workdir, packed, devices, **settings):
    """A run in this process, on some of its devices."""
    config = multihost_config.get_config()
    config.update_from_flattened_dict({**_fields(settings), "data.dir": str(packed)})
    loop.train(config, str(workdir), devices=jax.devices()[:devices])


@pytest.fixture
def start():
    """Starts one process of a run; whatever still runs at the end of a test is killed."""
    running = []

    def start_one(workdir, packed, devices, arguments=(), **settings):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        fields = _fields(settings)
        command = [sys.executable, "-m", "anygpt_jax.train", "--config=tests/multihost_config.py"]
        command += [f"--workdir={workdir}", f"--config.data.dir={packed}", *arguments]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        running.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
        return running[-1]

    try:
        yield start_one
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _free_address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def _start_together(start, workdir, packed, count=2, different=None, **settings):
    """`count` processes of one run on eight devices; `different` are settings of the last."""
    address = _free_address()
    return [
        start(
            workdir,
            packed,
            8 // count,
            [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"],
            **settings,
            **(different or {} if index == count - 1 else {}),
        )
        for index in range(count)
    ]


def _finish(*processes):
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors


def _losses(workdir):
    return [row["loss"] for row in read_metrics(str(workdir))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, packed):
    """The losses of thirty steps on eight devices of one process."""
    workdir = tmp_path_factory.mktemp("one")
    _train_here(workdir, packed, 8, steps=30, mesh__fsdp=2)
    losses = _losses(workdir)
    assert len(losses) == 30
    return losses


def test_two_processes_train_like_one_and_one_resumes_what_two_saved(tmp_path, packed, start, expected):
    together = tmp_path / "two"
    _finish(*_start_together(start, together, packed, steps=10, mesh__fsdp=2))
    assert _losses(together) == pytest.approx(expected[:10], rel=1e-5)
    assert _losses(together / "hosts" / "1") == _losses(together)

    for devices in (4, 1):
        alone = tmp_path / f"alone{devices}"
        shutil.copytree(together, alone)
        _train_here(alone, packed, devices, steps=30, mesh__fsdp=1)
        assert _losses(alone) == pytest.approx(expected, rel=1e-5)
        assert_resumed(read_metrics(str(together)), alone, 10)


@pytest.mark.long
def test_four_processes_train_like_one_and_resume_their_checkpoint_by_the_clock(
    tmp_path, packed, start, expected
):
    together = tmp_path / "four"
    settings = {"mesh__fsdp": 2, "checkpoint__every": 1000, "checkpoint__minutes": 1e-6}
    _finish(*_start_together(start, together, packed, 4, steps=5, **settings))
    assert len(list((together / "checkpoints").iterdir())) == 3  # the newest of those of every logged step
    before = read_metrics(str(together))
    _finish(*_start_together(start, together, packed, 4, steps=10, **settings))
    assert_resumed(before, together, 5)
    assert _losses(together) == pytest.approx(expected[:10], rel=1e-5)


def test_a_host_with_another_config_is_named_and_nothing_is_trained(tmp_path, packed, start):
    processes = _start_together(start, tmp_path / "run", packed, different={"seed": 7}, steps=10)
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 2, errors
        assert "Host 1 has config" in errors and "Traceback" not in errors
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_only_the_first_process_notices_ends_all_of_them(tmp_path, packed, start):
    (tmp_path / "run").mkdir()
    shutil.copy(ROOT / "anygpt_jax" / "assets" / "smallworld_model" / "vocabulary.json", tmp_path / "run")
    for process in _start_together(start, tmp_path / "run", packed, steps=10):
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 2, errors
        assert "checkpoint in" in errors and "Traceback" not in errors


def test_what_only_one_process_notices_ends_it_with_its_sentence_and_the_other_soon_after(tmp_path, start):
    pack(tmp_path, [7, 9, 12, 14] * 80, window=100)
    data = tmp_path / "packed"
    shard = sorted(data.glob("*/*.arrayrecord"))[1]
    whole = shard.read_bytes()
    records = whole[: len(whole) // 2].rstrip(b"\0")  # what follows is padding and a trailer
    middle = len(records) // 2
    shard.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    processes = _start_together(start, tmp_path / "run", data, steps=20, checkpoint__every=2)
    # JAX by itself would take 300 s.
    ended = [(process.communicate(timeout=200)[1], process.returncode) for process in processes]
    (message,) = [errors for errors, code in ended if code == 2]
    assert f"{shard} is damaged" in message and "Traceback" not in message
    assert 0 not in [code for _, code in ended]

    shard.write_bytes(whole)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    _train_here(tmp_path / "run", data, 8, steps=20)
    assert len(_losses(tmp_path / "run")) == 20


def test_sigterm_to_one_process_saves_and_stops_all(tmp_path, packed, start):
    processes = _start_together(start, tmp_path / "run", packed, steps=100_000, checkpoint__every=50_000)
    end = time.monotonic() + 300
    while len(_losses(tmp_path / "run")) < 5:
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert "Stopped by SIGTERM, saved at step" in errors
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_an_address_needs_the_number_of_processes(tmp_path, packed, start):
    process = start(tmp_path / "run", packed, 1, ["--coordinator=localhost:1234"])
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert "needs --num_processes and --process_id" in errors.splitlines()[-1]


def _wait_in_vain(workdir, *where):
    """The last line of a host that waits for others, which do not come."""
    code = (
        "from anygpt_jax import distributed\n"
        "distributed.SECONDS = 3\n"
        f"distributed.start({str(workdir)!r}, {', '.join(map(repr, where))})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "stack trace" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("process_id", "absent"), [(0, "hosts 1, 2"), (1, "hosts 0, 2")])
def test_a_host_that_waits_in_vain_names_those_that_did_not_come(tmp_path, process_id, absent):
    (tmp_path / ".waiting-2").write_text(str(time.time() - 3600))  # came to an earlier attempt
    last = _wait_in_vain(tmp_path, _free_address(), 3, process_id)
    assert last.startswith("error: waiting for 3 hosts at "), last
    assert last.endswith(f"took over 3 s; {absent} left no word in {tmp_path}."), last


def test_where_their_number_is_not_known_those_that_came_are_named(tmp_path):
    (tmp_path / ".waiting-host-b").write_text(str(time.time()))
    (tmp_path / ".waiting-host-c").write_text("")
    arrival = distributed._Arrival("waiting", tmp_path)
    assert arrival.who_is_missing() == "a host is missing or hangs"
    (tmp_path / ".waiting-host-c").write_text(str(time.time()))
    with arrival.announced():
        here = sorted([socket.gethostname(), "host-b", "host-c"])
        assert arrival.who_is_missing() == f"these have come: {', '.join(here)}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".waiting-host-b", ".waiting-host-c"]


def test_a_host_that_hangs_before_the_preflight_is_named(tmp_path):
    address = _free_address()

    def begin(process_id, then):
        code = (
            "import time, jax, multihost_config\n"
            "from anygpt_jax import distributed\n"
            f"distributed.start({str(tmp_path)!r}, '{address}', 3, {process_id})\n"
            "jax.devices()\n"
            "distributed.SECONDS = 5\n" + then
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    check = f"distributed.preflight({str(tmp_path)!r}, multihost_config.get_config())"
    processes = [begin(index, "time.sleep(100)" if index == 1 else check) for index in range(3)]
    try:
        errors = processes[0].communicate(timeout=120)[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: comparing") and last.endswith("host 1 did not come to it."), errors


def test_a_device_that_adds_up_wrongly_is_found(monkeypatch):
    distributed._check_sum()
    monkeypatch.setattr(jax.lax, "psum", lambda number, axis: number)
    with pytest.raises(UserError, match="devices of host 0 add up the numbers of all 8"):
        distributed._check_sum()
