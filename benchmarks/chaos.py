"""Kills a training at random moments and shows that nothing is lost.

    python benchmarks/chaos.py --kills=20 --out=benchmarks/results/chaos.json
    python benchmarks/chaos.py --kills=20 --processes=2 --out=benchmarks/results/chaos_two_processes.json

A tiny run that saves a checkpoint every few steps is killed with SIGKILL again and again, checkpoint writes
included, and started again by the same command. At the end its curve has to be the one of an uninterrupted
run, bit for bit; after no kill may the newest checkpoint be older than before it; and each start has to go on
from that checkpoint. A run of several processes loses all of them or one: then the others live on for up to
LONGEST seconds, until they are killed too, as the launcher of a pod restarts all hosts when one is gone.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from anygpt_jax.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "steps": 600,
    "data.batch_size": 2,
    "log_every": 1,
    "checkpoint.every": 4,
    "checkpoint.keep": 2,
    "peak_flops": 1e12,
}
MEDIA = {"image": 1, "speech": 0, "music": 0}
LONGEST = 1.0  # seconds before a kill, after up to two checkpoints' worth of steps


def make_data(folder: Path) -> Path:
    """Packs a few pictures of the small world; returns the packed directory."""
    config = "--config=configs/tiny.py:dummy"
    world, tokens, packed = folder / "world", folder / "tokens", folder / "packed"
    _python("anygpt_jax.smallworld", f"--out={world}", "--split=train", "--images=60")
    _python("anygpt_jax.tokenize", config, f"--manifest={world}/manifest.jsonl", f"--out={tokens}")
    _python("anygpt_jax.pack", config, f"--tokens={tokens}", f"--out={packed}")
    return packed


def chaos(folder: Path, kills: int, seed: int = 0, processes: int = 1, **settings: Any) -> dict[str, Any]:
    """Runs it in an empty folder; returns what happened.

    `settings` change SETTINGS. In the result `curves_equal` has to be True; `lost`, the kills after which the
    newest checkpoint was older, and `restarted`, those after which the run did not go on from it, empty.
    """
    packed, rng = make_data(folder), random.Random(seed)
    whole, hurt = folder / "whole", folder / "hurt"
    fields = SETTINGS | settings
    if processes > 1:
        fields |= {"mesh.data": processes}
    _finish(_start(packed, whole, fields, processes))
    events, lost, restarted, newest, rows = [], [], [], 0, []
    for kill in range(kills):
        running = _start(packed, hurt, fields, processes)
        _wait_for_progress(running, hurt, rng.randint(1, 2 * fields["checkpoint.every"]))
        delay = rng.uniform(0, LONGEST)
        time.sleep(delay)
        finished = any(process.poll() is not None for process in running)
        victims = _kill_some(running, rng)
        if finished:
            raise SystemExit(f"The run was over after {kill} kills; give it more steps.")
        if kill and not _kept(rows, hurt, newest):
            restarted.append(kill - 1)
        rows = read_metrics(str(hurt))
        steps = [int(path.name) for path in (hurt / "checkpoints").iterdir() if path.name.isdigit()]
        writing = any(not path.name.isdigit() for path in (hurt / "checkpoints").iterdir())
        before, newest = newest, max(steps, default=0)
        event = {"delay_s": round(delay, 3), "step": len(rows), "writing": writing, "newest": newest}
        events.append(event if processes == 1 else {**event, "victims": victims})
        if newest < before:
            lost.append(kill)
    _finish(_start(packed, hurt, fields, processes))
    if not _kept(rows, hurt, newest):
        restarted.append(kills - 1)
    curves = [_curve(run) for run in (whole, hurt)]
    equal = curves[0] == curves[1] and len(curves[0]) == fields["steps"]
    result = {"kills": events, "lost": lost, "restarted": restarted, "curves_equal": equal}
    return {**result, "processes": processes, "settings": fields}


def _kept(rows: list[dict[str, float]], workdir: Path, step: int) -> bool:
    """Whether the log up to a checkpoint is still the one of before, `rows`, with what the clock decided."""
    kept = [row for row in read_metrics(str(workdir)) if row["step"] <= step]
    return kept == [row for row in rows if row["step"] <= step]


def _kill_some(running: list[subprocess.Popen], rng: random.Random) -> list[int]:
    """Kills all processes, or one and later the others; returns the index of those that were killed first."""
    victims = list(range(len(running)))
    if len(running) > 1 and rng.random() < 2 / 3:
        victims = [rng.randrange(len(running))]
    for index in victims:
        running[index].kill()
    if len(victims) < len(running):
        time.sleep(rng.uniform(0, LONGEST))
    for process in running:
        process.kill()
        process.wait()
    return victims


def _finish(running: list[subprocess.Popen]) -> None:
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"A run that nobody killed ended with {codes}.")


def _python(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _start(packed: Path, workdir: Path, fields: dict[str, Any], processes: int) -> list[subprocess.Popen]:
    command = [sys.executable, "-m", "anygpt_jax.train", "--config=configs/tiny.py:dummy"]
    command += [f"--workdir={workdir}", f"--config.data.dir={packed}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    command += [f"--config.data.mixture.{name}={rate}" for name, rate in MEDIA.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    quiet = subprocess.DEVNULL
    together = []
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        together = [f"--coordinator={address}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [*command, *together, *([f"--process_id={index}"] if together else [])],
            cwd=ROOT,
            env=environment,
            stdout=quiet,
            stderr=quiet,
        )
        for index in range(processes)
    ]


def _wait_for_progress(running: list[subprocess.Popen], workdir: Path, more: int) -> None:
    """Returns when the log has so many rows more."""
    rows = len(read_metrics(str(workdir)))
    while all(process.poll() is None for process in running):
        now = len(read_metrics(str(workdir)))
        rows = min(rows, now)  # a resumed run first cuts its log back to the checkpoint
        if now >= rows + more:
            return
        time.sleep(0.02)
    codes = [process.poll() for process in running]
    raise SystemExit(f"The training in {workdir} ended with {codes} before it was killed.")


def _curve(workdir: Path) -> list[dict[str, float]]:
    rows = read_metrics(str(workdir))
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def main() -> None:
    """Prints and writes the result; the exit code is 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = chaos(Path(folder), arguments.kills, arguments.seed, arguments.processes)
    for event in result["kills"]:
        print(json.dumps(event))
    writing = sum(event["writing"] for event in result["kills"])
    print(
        f"{len(result['kills'])} kills, {writing} during a checkpoint's write; lost {result['lost']}, "
        f"restarted {result['restarted']}; ",
        end="",
    )
    print(f"curves bit for bit equal: {result['curves_equal']}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if result["curves_equal"] and not result["lost"] + result["restarted"] else 1)


if __name__ == "__main__":
    main()
