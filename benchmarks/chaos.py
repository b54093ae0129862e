"""Kills a training at random moments and shows that nothing is lost.

    python benchmarks/chaos.py --kills=20 --out=benchmarks/results/chaos.json

A tiny run that saves a checkpoint every few steps is killed with SIGKILL again and again, checkpoint writes
included, and started again by the same command. At the end its curve has to be the one of an uninterrupted
run, bit for bit, and after no kill may the newest checkpoint be older than before it.
"""

import argparse
import json
import os
import random
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
LONGEST = 1.0  # seconds of training before a kill


def make_data(folder: Path) -> Path:
    """Packs a few pictures of the small world; returns the packed directory."""
    config = "--config=configs/tiny.py:dummy"
    world, tokens, packed = folder / "world", folder / "tokens", folder / "packed"
    _python("anygpt_jax.smallworld", f"--out={world}", "--split=train", "--images=60")
    _python("anygpt_jax.tokenize", config, f"--manifest={world}/manifest.jsonl", f"--out={tokens}")
    _python("anygpt_jax.pack", config, f"--tokens={tokens}", f"--out={packed}")
    return packed


def chaos(folder: Path, kills: int, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """Runs it in an empty folder; returns what happened.

    `settings` change SETTINGS. In the result `curves_equal` has to be True and `lost`, the kills after which
    the newest checkpoint was older, empty.
    """
    packed, rng = make_data(folder), random.Random(seed)
    whole, hurt = folder / "whole", folder / "hurt"
    fields = SETTINGS | settings
    assert _start(packed, whole, fields).wait() == 0
    events, lost, newest = [], [], 0
    for kill in range(kills):
        process = _start(packed, hurt, fields)
        _wait_for_progress(process, hurt)
        delay = rng.uniform(0, LONGEST)
        time.sleep(delay)
        finished = process.poll() is not None
        process.kill()
        process.wait()
        if finished:
            raise SystemExit(f"The run was over after {kill} kills; give it more steps.")
        steps = [int(path.name) for path in (hurt / "checkpoints").iterdir() if path.name.isdigit()]
        writing = any(not path.name.isdigit() for path in (hurt / "checkpoints").iterdir())
        logged = len(read_metrics(str(hurt)))
        before, newest = newest, max(steps, default=0)
        events.append({"delay_s": round(delay, 3), "step": logged, "writing": writing, "newest": newest})
        if newest < before:
            lost.append(kill)
    assert _start(packed, hurt, fields).wait() == 0
    curves = [_curve(run) for run in (whole, hurt)]
    equal = curves[0] == curves[1] and len(curves[0]) == fields["steps"]
    return {"kills": events, "lost": lost, "curves_equal": equal, "settings": fields}


def _python(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _start(packed: Path, workdir: Path, fields: dict[str, Any]) -> subprocess.Popen:
    command = [sys.executable, "-m", "anygpt_jax.train", "--config=configs/tiny.py:dummy"]
    command += [f"--workdir={workdir}", f"--config.data.dir={packed}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    command += [f"--config.data.mixture.{name}={rate}" for name, rate in MEDIA.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)


def _wait_for_progress(process: subprocess.Popen, workdir: Path) -> None:
    """Returns when the log grows."""
    path = workdir / "metrics.jsonl"
    before = path.stat().st_size if path.exists() else 0
    rows = len(read_metrics(str(workdir)))
    while process.poll() is None:
        # A resumed run first cuts its log back to the checkpoint.
        size = path.stat().st_size if path.exists() else 0
        if size < before:
            before, rows = size, len(read_metrics(str(workdir)))
        if size > before and len(read_metrics(str(workdir))) > rows:
            return
        time.sleep(0.02)
    raise SystemExit(f"The training in {workdir} ended with {process.returncode} before it was killed.")


def _curve(workdir: Path) -> list[dict[str, float]]:
    rows = read_metrics(str(workdir))
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def main() -> None:
    """Prints and writes the result; the exit code is 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = chaos(Path(folder), arguments.kills, arguments.seed)
    for event in result["kills"]:
        print(json.dumps(event))
    writing = sum(event["writing"] for event in result["kills"])
    print(
        f"{len(result['kills'])} kills, {writing} during a checkpoint's write; lost {result['lost']}; ",
        end="",
    )
    print(f"curves bit for bit equal: {result['curves_equal']}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if result["curves_equal"] and not result["lost"] else 1)


if __name__ == "__main__":
    main()
