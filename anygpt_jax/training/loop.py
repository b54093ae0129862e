"""The training run: builds everything from a config, resumes by itself, and stops cleanly."""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from anygpt_tokenizers.cli import UserError
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from anygpt_jax import distributed, integrity, sharding, storage
from anygpt_jax.checkpoint import JointCheckpoint, describe_model, write_companions
from anygpt_jax.data import packing
from anygpt_jax.data.pipeline import PackedData
from anygpt_jax.model import attention
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.training import checks, metrics_log
from anygpt_jax.training.ending import DivergedError, StoppedError, StopSignals, disk_space, make_room
from anygpt_jax.training.optimizer import as_saved, as_wanted, make_optimizer
from anygpt_jax.training.state import TrainState, abstract_state, init_state
from anygpt_jax.training.step import Objective, compile_train_step, make_eval_step
from anygpt_jax.vocabulary import Vocabulary


def train(
    config: Any,
    workdir: str | os.PathLike,
    data: PackedData | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Trains from the newest checkpoint in `workdir`, or from fresh parameters, to `config.steps`.

    Args:
      config: the fields of training/defaults.py.
      data: replaces the packed directory config.data.dir. devices: replace all devices.
    Returns:
      The last logged row (names: metrics_log.summarise, Rate.measure).
    Raises:
      UserError: the config, the data or the checkpoint do not fit. DivergedError, StoppedError: see there.
    """
    workdir = storage.locate(workdir)
    checks.check_fields(config)
    checks.check_numbers(config)
    distributed.preflight(workdir, config)
    source, length = config.data, config.pack.seq_len
    data = data or open_data(source.dir, source.mixture, source.batch_size, config.seed, length)
    with contextlib.ExitStack() as stack:
        run, state, step = _set_up(config, workdir, data, devices, stack)
        stack.enter_context(disk_space(run.checkpoint))
        stack.callback(run.log.close)
        stack.push(make_room(run.checkpoint))  # again: until it is closed, threads may still write
        stack.callback(run.checkpoint.close)
        stack.push(make_room(run.checkpoint))
        return run.steps(state, step, stack.enter_context(StopSignals()))


def _set_up(
    config: Any,
    workdir: epath.Path,
    data: PackedData,
    devices: Sequence[jax.Device] | None,
    stack: contextlib.ExitStack,
) -> tuple["_Run", TrainState, int]:
    """Everything that the loop needs, and the state of the step it begins at; `stack` holds the directory."""
    # ---------------------------------------------------------------- model, mesh, optimizer
    vocabulary, objective = data.vocabulary, Objective.from_config(config, data.vocabulary)
    evaluated = _open_evaluated(config, vocabulary)
    model = model_config(config.model, vocabulary)
    mesh = sharding.make_mesh(config.mesh, devices)
    accumulation = config.optimizer.accumulation
    sharding.check_divisible(model, mesh, config.data.batch_size, accumulation, config.rules)
    sharding.check_slices(config.mesh.get("slices", 1), config.rules)
    sharding.check_local_rows(mesh, config.data.batch_size)
    optimizer, learning_rate = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(model, optimizer, objective.zero_sums(), mesh, config.rules)

    # ---------------------------------------------------------------- state: resumed or fresh
    distributed.on_primary(lambda: _prepare(workdir, data, config.codecs, stack))
    checkpoint = JointCheckpoint(workdir, config.checkpoint.keep, config.checkpoint.keep_every)
    checkpoint.discard_unfinished()  # of a run that was killed while it saved
    meta = {
        "model": model.to_dict(),
        "vocabulary": vocabulary.to_json(),
        "config": checks.plain(config),
        "data": data.contents,
    }
    state, step = _resume_or_init(checkpoint, optimizer, config, abstract, model, data)
    if distributed.is_primary():
        storage.write_text(workdir / "parameters.txt", sharding.describe(state.params) + "\n")

    # ---------------------------------------------------------------- compiled step, evaluation, log
    shape = (config.data.batch_size, data.seq_len)
    settled = attention.for_mesh(model, mesh, data.seq_len)
    train_step = compile_train_step(
        settled,
        optimizer,
        learning_rate,
        objective,
        mesh,
        config.rules,
        abstract,
        shape,
        accumulation,
        config.scoped_vmem_kib,
    )
    evaluate = evaluated and _make_evaluation(evaluated, config, settled, objective, mesh)
    peak = metrics_log.peak_flops_per_device(mesh.devices.flat[0], config.peak_flops)
    rate = metrics_log.Rate(
        model.train_flops_per_token(data.seq_len) * math.prod(shape), peak and peak * mesh.size
    )
    log = metrics_log.MetricsLog(_log_directory(workdir), step, config.steps, objective.modalities)
    run = _Run(config, data, objective, mesh, train_step, evaluate, checkpoint, meta, rate, log)
    return run, state, step


@dataclasses.dataclass
class _Run:
    """What the loop of steps works with; `_set_up` makes it."""

    config: Any
    data: PackedData
    objective: Objective
    mesh: Mesh
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any], dict[str, float]] | None  # None: never
    checkpoint: JointCheckpoint
    meta: dict[str, Any]  # what every checkpoint says about itself
    rate: metrics_log.Rate
    log: metrics_log.MetricsLog

    def steps(self, state: TrainState, step: int, stop: StopSignals) -> dict[str, float]:
        """From `step` to the config's last; the last logged row."""
        config, rate, row = self.config, self.rate, self.log.last_row
        if step >= config.steps:
            self.log.note(f"Nothing to train: step {step} of config.steps = {config.steps} is there already.")
        timer = _Timer(config.checkpoint.minutes)
        batches = self.data.iterator(step, config.data.prefetch)
        unchecked = None  # the record of the newest step that has not been looked at
        while step < config.steps:
            with rate.waiting():
                batch = sharding.put_batch(next(batches), self.mesh)
            state, record = self.train_step(state, batch)
            _check(unchecked, step, self.checkpoint, self.log)  # while the device is at the next step
            step, unchecked = step + 1, record
            rate.steps += 1
            self.log.advance(step)

            last = step == config.steps
            log_now = step % config.log_every == 0 or last or self.evaluation_is_due(step)
            stopping = stop.agreed(step)
            save_now = step % config.checkpoint.every == 0 or last or stopping or (log_now and timer.due())
            if log_now or save_now:
                _check(unchecked, step, self.checkpoint, self.log)
                unchecked = None
            if log_now:
                state, row = self.write_row(state, record, step)
            if save_now:
                with rate.saving():
                    self.log.send()
                    self.checkpoint.save(state, self.meta, {"next_step": step})
                timer.restart()
            if stopping and not last:
                self.checkpoint.wait()
                name = signal.Signals(stopping).name
                message = f"Stopped by {name}, saved at step {step}; the same command continues from there."
                raise StoppedError(message, stopping)
        self.checkpoint.wait()
        return row

    def evaluation_is_due(self, step: int) -> bool:
        """Each config.eval.every steps and after the last one, if there is anything to evaluate on."""
        return bool(self.evaluate) and (step % self.config.eval.every == 0 or step == self.config.steps)

    def write_row(
        self, state: TrainState, record: dict[str, jax.Array], step: int
    ) -> tuple[TrainState, dict[str, float]]:
        """Logs what was added up since the last row: (state with sums of zero, the row)."""
        row = metrics_log.summarise(state.sums, self.objective.modalities, self.objective.directions)
        row |= {name: float(record[name]) for name in ("grad_norm", "learning_rate")}
        row |= self.rate.measure(float(state.sums.tokens))
        if self.evaluation_is_due(step):
            row |= self.evaluate(state.params)
        self.log.write(step, row)
        # From the host: with one device per process what jax 0.10.2 makes of its own cannot be saved.
        zeros = jax.device_get(self.objective.zero_sums())
        state = state.replace(sums=jax.device_put(zeros, sharding.replicated(self.mesh)))
        self.rate.restart()
        return state, row


def _prepare(workdir: epath.Path, data: PackedData, codec_dirs: Any, stack: contextlib.ExitStack) -> None:
    """What is done once, before any process looks for a checkpoint."""
    storage.make_directory(workdir)
    stack.enter_context(storage.held(workdir))
    write_companions(workdir, data.vocabulary, data.text_tokenizer, codec_dirs)
    for sentence in integrity.set_aside_damaged(workdir):
        print(sentence, file=sys.stderr)


def _log_directory(workdir: epath.Path) -> epath.Path:
    """The first process logs in the working directory, another in hosts/<its index> there."""
    return workdir if distributed.is_primary() else workdir / "hosts" / str(jax.process_index())


def open_data(
    directory: str, mixture: Any, batch_size: int, seed: int, seq_len: int, field: str = "data.dir"
) -> PackedData:
    """The packed data of the directory that config.`field` names; a UserError says where to get some.

    Also if its rows have not `seq_len` tokens: that run would not be the one that compile_check compiled.
    """
    storage.refuse_address(
        directory,
        "ArrayRecord reads local files: mount the bucket (with gcsfuse, as launch/ does) and give the path "
        f"where it is mounted as --config.{field}",
    )
    if not os.path.isfile(os.path.join(directory, packing.META)):
        raise UserError(
            f"There is no packed data at {directory!r}; make it with python -m anygpt_jax.pack and give its "
            f"directory as --config.{field}=DIR."
        )
    data = PackedData(
        directory, dict(mixture) or None, batch_size, seed, jax.process_index(), jax.process_count()
    )
    if data.seq_len != seq_len:
        other = {
            "data.dir": f"train with --config.pack.seq_len={data.seq_len}",
            "eval.dir": "give other data as --config.eval.dir",
        }[field]
        raise UserError(
            f"The rows of {directory!r} have {data.seq_len} tokens and config.pack.seq_len = {seq_len}; pack "
            f"with the config that trains, or {other}."
        )
    return data


def model_config(fields: Any, vocabulary: Vocabulary) -> DecoderConfig:
    """The decoder of `config.model` over a vocabulary; a UserError where the sizes make no sense."""
    overrides = {name: value for name, value in fields.items() if name != "preset" and value is not None}
    try:
        return DecoderConfig.preset(
            fields.preset, vocab_size=vocabulary.padded_size, num_real_rows=vocabulary.size, **overrides
        )
    except ValueError as error:
        raise UserError(f"config.model does not fit together: {error}.") from error


def _resume_or_init(
    checkpoint: JointCheckpoint,
    optimizer: Any,
    config: Any,
    abstract: TrainState,
    model: DecoderConfig,
    data: PackedData,
) -> tuple[TrainState, int]:
    step = checkpoint.latest_step()
    if step is None:
        state = init_state(model, optimizer, config.seed, abstract)
        if config.init_from:
            jax.tree.map(lambda leaf: leaf.delete(), state.params)  # room for those that replace them
            state = state.replace(
                params=initial_parameters(config.init_from, model, data.vocabulary, abstract.params)
            )
        return state, 0
    if not checkpoint.can_resume(step):
        raise UserError(
            f"{checkpoint.workdir} holds parameters only; give a new --workdir and "
            f"--config.init_from={checkpoint.workdir}."
        )
    meta = checkpoint.meta(step)
    checks.check_model(model, meta["model"], checkpoint.workdir)
    checks.check_continues(meta, config, data.contents, checkpoint.workdir)
    state, position = checkpoint.restore(step, as_saved(abstract, meta["config"]["optimizer"]))
    return as_wanted(state, abstract), position["next_step"]


def initial_parameters(
    workdir: str | os.PathLike, model: DecoderConfig, vocabulary: Vocabulary, abstract: Any
) -> Any:
    """The newest parameters of another working directory, placed and typed as `abstract` says.

    UserError if they are of another model or vocabulary; a codec that `workdir` does not know is no
    difference (an imported checkpoint knows none).
    """
    saved, theirs, _, step = describe_model(workdir)
    hashes = {
        name: dataclasses.replace(entry, codec_hash=vocabulary.modalities[name].codec_hash)
        for name, entry in theirs.modalities.items()
        if entry.codec_hash is None and name in vocabulary.modalities
    }
    theirs = dataclasses.replace(theirs, modalities=theirs.modalities | hashes)
    vocabulary.check(theirs, here="the packed data", there=f"config.init_from = {workdir}")
    checks.check_start(model, saved.to_dict(), workdir)
    checkpoint = JointCheckpoint(workdir, keep=None)
    try:
        return checkpoint.restore_params(step, abstract)
    finally:
        checkpoint.close()


def _open_evaluated(config: Any, vocabulary: Vocabulary) -> PackedData | None:
    """The data of config.eval, which have to be of the training data's vocabulary; None: never evaluate."""
    if not (config.eval.every and config.eval.dir):
        return None
    rows, length = config.data.batch_size, config.pack.seq_len
    data = open_data(config.eval.dir, {}, rows, seed=0, seq_len=length, field="eval.dir")
    vocabulary.check(data.vocabulary, here="the training data", there=f"config.eval.dir = {config.eval.dir}")
    return data


def _make_evaluation(
    data: PackedData, config: Any, model: DecoderConfig, objective: Objective, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: mean losses over config.eval.batches batches of `data`, named eval/…."""
    eval_step = make_eval_step(model, objective, mesh, config.rules)

    def evaluate(params: Any) -> dict[str, float]:
        sums = objective.zero_sums()
        for step in range(config.eval.batches):
            batch = sharding.put_batch(data.batch(step), mesh)
            sums = jax.tree.map(np.add, sums, jax.device_get(eval_step(params, batch)))
        row = metrics_log.summarise(sums, objective.modalities, objective.directions)
        return {f"eval/{name}": value for name, value in row.items() if not name.startswith("share/")}

    return evaluate


def _check(
    record: dict[str, jax.Array] | None,
    step: int,
    checkpoint: JointCheckpoint,
    log: metrics_log.MetricsLog,
) -> None:
    """Waits for a step's record; says if the step was skipped, and stops the run if it is not finite.

    No such state is ever saved.
    """
    if record is None:
        return
    loss, grad_norm = float(record["loss"]), float(record["grad_norm"])
    if record["skipped"]:
        log.note(f"step {step}: skipped, the loss is {loss:.3g} and the gradient's norm {grad_norm:.3g}")
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    checkpoint.wait()
    good = checkpoint.latest_step()
    stands = "No checkpoint was saved yet." if good is None else f"The checkpoint of step {good} stands."
    raise DivergedError(
        f"Step {step}: the loss is {loss} and the gradient's norm {grad_norm}. {stands} "
        "Lower config.optimizer.learning_rate or look at the data of that step."
    )


class _Timer:
    """Says when so many minutes have passed since its last start; 0 minutes never do."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def due(self) -> bool:
        """Every process hears the same, what the first one's clock says; all have to ask together."""
        if not self._seconds:
            return False
        due = time.monotonic() - self._start >= self._seconds
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))
