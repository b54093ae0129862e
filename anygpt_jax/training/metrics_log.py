"""The log of a run: one line per interval in metrics.jsonl, in TensorBoard and on the terminal.

In a bucket the two files are as new as the newest checkpoint; see MetricsLog.send.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
from anygpt_tokenizers.cli import UserError
from tqdm import tqdm

from anygpt_jax import storage
from anygpt_jax.training.state import MetricSums

METRICS_FILE = "metrics.jsonl"

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets; the first key in the device kind counts.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
}


def peak_flops_per_device(device: jax.Device, configured: float | None = None) -> float | None:
    """FLOP/s that MFU is measured against: configured, else from the table, else (CPU) a timed product's.

    None for an accelerator that the table does not know.
    """
    if configured:
        return configured
    for kind, peak in PEAK_FLOPS.items():
        if kind in device.device_kind:
            return peak
    return _measured_peak() / jax.local_device_count() if device.platform == "cpu" else None


def _measured_peak(size: int = 1024, rounds: int = 10) -> float:
    """The best of a few float32 products of size × size matrices, in FLOP/s."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def summarise(sums: MetricSums, modalities: Sequence[str], directions: Sequence[str]) -> dict[str, float]:
    """Means from sums. loss is the objective (weighted, z-loss included); loss/X and accuracy/X are of answer
    tokens, unweighted, for X a modality or a direction; share/X is the part of the loss weight that X's
    tokens have. What did not occur is left out."""
    sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(sums))
    row = {"loss": float(sums.objective[0] / max(sums.objective[1], 1e-9))}
    for name, (nll, correct, count) in _rows(modalities, sums.modalities[:, :3], directions, sums.directions):
        if count:
            row[f"loss/{name}"] = float(nll / count)
            row[f"accuracy/{name}"] = float(correct / count)
    for name, weight in zip(modalities, sums.modalities[:, 3], strict=True):
        row[f"share/{name}"] = float(weight / max(sums.objective[1], 1e-9))
    return row


def _rows(modalities, by_modality, directions, by_direction):
    yield from zip(modalities, by_modality, strict=True)
    # The direction "text" is named like the modality; it is the text of documents without media.
    names = [f"{name}-only" if name in modalities else name for name in directions]
    yield from zip(names, by_direction, strict=True)


class Rate:
    """Measures one log interval: its seconds, and those spent waiting for data and for checkpoints.

    A checkpoint that is saved after a row was logged belongs to the next interval.
    """

    def __init__(self, flops_per_step: float, peak_flops: float | None):
        """`flops_per_step`: train_flops_per_token × B × L, padding included. `peak_flops`: of all devices."""
        self._flops_per_step, self._peak = flops_per_step, peak_flops
        self.restart()

    def restart(self) -> None:
        """Begins the next interval."""
        self._started, self._waited, self._saved, self.steps = time.perf_counter(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever fetches a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around the start of a checkpoint, which the training waits for."""
        start = time.perf_counter()
        yield
        self._saved += time.perf_counter() - start

    def measure(self, tokens: float) -> dict[str, float]:
        """tokens_per_s (`tokens`: the interval's without padding), seconds per step and of these waiting for
        data, seconds that checkpoints held up the interval, and MFU = model FLOPs / seconds / peak FLOP/s."""
        seconds = time.perf_counter() - self._started
        row = {
            "speed/tokens_per_s": tokens / seconds,
            "speed/step_s": seconds / max(self.steps, 1),
            "speed/data_wait_s": self._waited / max(self.steps, 1),
            "speed/checkpoint_s": self._saved,
        }
        if self._peak:
            row["speed/mfu"] = self._flops_per_step * self.steps / seconds / self._peak
        return row


class MetricsLog:
    """Writes rows {"step": …, name: value}; only keys that start with speed/ differ between equal runs."""

    def __init__(
        self, workdir: str | os.PathLike, start_step: int, total_steps: int, modalities: Sequence[str]
    ):
        """Drops what an interrupted run logged after `start_step`, the step that training resumes from.

        The terminal shows the losses of `modalities`; the files have everything.
        """
        self._shown = {f"loss/{name}" for name in modalities}
        rows = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        self.last_row = {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}
        self._outbox = storage.Outbox(storage.locate(workdir))
        path = os.path.join(self._outbox.path, METRICS_FILE)
        storage.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._outbox.send()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 – open for the run
        self._board = tensorboardX.SummaryWriter(
            os.path.join(self._outbox.path, "tensorboard"), purge_step=start_step + 1
        )
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Appends a row to all three logs."""
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)
        shown = {
            "loss": "loss",
            "speed/tokens_per_s": "tokens/s",
            "speed/mfu": "MFU",
            "eval/loss": "eval loss",
        }
        parts = [f"{label} {row[name]:,.4g}" for name, label in shown.items() if name in row]
        parts += [f"{n.removeprefix('loss/')} {v:.3f}" for n, v in row.items() if n in self._shown]
        self._bar.write(f"step {step}: " + ", ".join(parts))

    def note(self, text: str) -> None:
        """A line for the terminal only."""
        self._bar.write(text)

    def send(self) -> None:
        """Before a checkpoint: an object cannot be appended to, so a bucket gets both logs anew."""
        if self._outbox.copied:
            self._board.flush()
            self._outbox.send()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self._bar.close()
        try:
            self._outbox.send()
        finally:
            self._outbox.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, [] if it has none.

    A last line cut by a kill is left out, and so is, with a word on stderr, a line that is no row.
    """
    path = storage.locate(workdir) / METRICS_FILE
    try:
        lines = storage.read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except IsADirectoryError:
        raise UserError(f"{path} is a directory and not the log of a run; move it away.") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        row = _read_row(line)
        if row is not None:
            rows.append(row)
        elif line:
            print(f"Line {number} of {path} is no row of a log and is left out.", file=sys.stderr)
    return rows


def _read_row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and all(isinstance(value, (int, float)) for value in row.values())
    return row if is_row and "step" in row else None
