"""The joint model's directory: checkpoints of the language model, its vocabulary, text model and codecs.

workdir/                                               on a disk, or in a bucket (storage.py)
  checkpoints/<step>/{params, opt_state, data, meta}   Orbax; opt_state, data: what training alone needs
  checksums/<step>.json                                see integrity.py
  vocabulary.json, text.model                          written once
  codecs/<modality>/…                                  written once, bound to the vocabulary by hash
"""

import dataclasses
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import CONFIG_FILE, Codec, load_codec, shipped_codec
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from anygpt_jax import distributed, integrity, sharding, storage
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import init_boxed_params
from anygpt_jax.text import TextTokenizer
from anygpt_jax.training.state import TrainState
from anygpt_jax.vocabulary import Vocabulary

CHECKPOINTS = integrity.CHECKPOINTS
VOCABULARY, TEXT_MODEL, CODECS = "vocabulary.json", "text.model", "codecs"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "anygpt_jax")


def package_versions() -> dict[str, str]:
    """Name → version of what decides a checkpoint's content."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


class JointCheckpoint:
    """Saves and restores the training state of one directory, asynchronously.

    Args:
      keep: how many of the newest stay; None keeps all. keep_every: its multiples stay too, for good.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int | None = 3, keep_every: int = 0):
        self.workdir = storage.locate(workdir)
        stays = [policies.LatestN(keep)]
        if keep_every:
            stays.append(policies.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.workdir / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(stays),
                create=True,
                enable_async_checkpointing=True,
            ),
        )
        self._recorder = ThreadPoolExecutor(1)
        self._recording: Future | None = None  # of the newest checkpoint's checksums

    def latest_step(self) -> int | None:
        """The newest finished checkpoint; an interrupted save does not count."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps of all finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Starts saving `state` under its step. `meta` and `data` are JSON values; meta gets the versions.

        A save that still runs is waited for. The checksums are written as soon as this one has ended.
        """
        self._manager.wait_until_finished()
        if self._recording and self._recording.done():
            self._recording.result()  # raises what went wrong
        training = {"optimizer": state.opt_state, "sums": state.sums, "step": state.step}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                opt_state=ocp.args.StandardSave(training),
                data=ocp.args.JsonSave(dict(data)),
                meta=ocp.args.JsonSave({**meta, "step": int(state.step), "versions": package_versions()}),
            ),
        )
        if distributed.is_primary():
            self._recording = self._recorder.submit(self._record, int(state.step), self._recording)

    def can_resume(self, step: int) -> bool:
        """Whether a checkpoint has what training needs beyond the parameters; an imported one has not."""
        return (self.workdir / CHECKPOINTS / str(step) / "opt_state").is_dir()

    def meta(self, step: int) -> dict[str, Any]:
        """The meta item of a checkpoint: step, model, vocabulary, config, versions."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of a checkpoint and its data item, placed as the abstract state's shardings say."""
        training = {"optimizer": abstract.opt_state, "sums": abstract.sums, "step": abstract.step}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                opt_state=ocp.args.StandardRestore(training),
                data=ocp.args.JsonRestore(),
            ),
        )
        training = restored.opt_state
        state = TrainState(training["step"], restored.params, training["optimizer"], training["sums"])
        return state, restored.data

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters alone."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=args).params

    def wait(self) -> None:
        """Returns when everything that was saved is on disk, with its checksums."""
        self._manager.wait_until_finished()
        if self._recording:
            self._recording.result()

    def close(self) -> None:
        self._manager.close()
        self._recorder.shutdown()

    def discard_unfinished(self) -> None:
        """Removes what an interrupted save has left on a disk, which takes space and is of no use."""
        if distributed.is_primary():
            for name in storage.names(self.workdir / CHECKPOINTS):
                if ".orbax-checkpoint-tmp" in name:
                    shutil.rmtree(self.workdir / CHECKPOINTS / name, ignore_errors=True)

    def _record(self, step: int, before: Future | None) -> None:
        """Writes a checkpoint's checksums when its save, or one that began since, has ended.

        Runs beside the training. Orbax lets any thread wait, and the waiting needs no other process.
        """
        if before:
            before.result()  # so that what went wrong there is still told when nobody has asked in between
        self._manager.wait_until_finished()
        integrity.record(self.workdir, step)


def write_companions(
    workdir: epath.Path,
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    codec_dirs: Mapping[str, str | None],
) -> None:
    """Writes vocabulary, text model and codecs beside the checkpoints, where one of them is not there.

    Raises:
      UserError: the directory belongs to another vocabulary, or a codec's hash is not the vocabulary's.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / VOCABULARY
    if path.exists():
        vocabulary.check(Vocabulary.load(path), here="the packed data", there=f"the checkpoint in {workdir}")
    whole = path.exists()  # written last
    if not (whole and (workdir / TEXT_MODEL).exists()):
        text_tokenizer.save(workdir / TEXT_MODEL)
    for name, modality in vocabulary.modalities.items():
        if modality.codec_hash and not (whole and (workdir / CODECS / name / CONFIG_FILE).exists()):
            codec = _find_codec(name, modality.codec_hash, codec_dirs.get(name))
            with storage.Outbox(workdir / CODECS / name) as directory:
                codec.save_pretrained(directory)
    if not whole:
        vocabulary.save(path)


def _find_codec(name: str, wanted_hash: str, directory: str | None) -> Codec:
    codec = load_codec(directory) if directory else shipped_codec(name)
    if codec.hash != wanted_hash:
        raise UserError(
            f"The {name} codec {directory or 'shipped with the package'} has hash {codec.hash}, but the "
            f"packed data has codes of {wanted_hash}; set config.codecs.{name} to that codec's directory."
        )
    return codec


class Codecs(Mapping[str, Codec]):
    """The codecs of a working directory by modality, each loaded when it is first asked for."""

    def __init__(self, workdir: str | os.PathLike, vocabulary: Vocabulary):
        self._workdir, self._vocabulary = storage.locate(workdir), vocabulary
        self._loaded: dict[str, Codec] = {}

    def __getitem__(self, name: str) -> Codec:
        if name not in self._loaded:
            modality = self._vocabulary.modality(name)
            directory = self._workdir / CODECS / name
            if not directory.is_dir():
                raise UserError(f"{directory} is missing: the model has no codec for {name!r}.")
            codec = load_codec(storage.fetch(directory))
            if modality.codec_hash and codec.hash != modality.codec_hash:
                raise UserError(
                    f"{directory} holds the codec {codec.hash}; the vocabulary wants {modality.codec_hash}."
                )
            self._loaded[name] = codec
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vocabulary.modalities)

    def __len__(self) -> int:
        return len(self._vocabulary.modalities)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """All that sampling needs. `params` is a nested dict; `codecs` loads lazily."""

    params: Any
    config: DecoderConfig
    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer
    codecs: Mapping[str, Codec]
    step: int


def load_model(
    workdir: str | os.PathLike,
    step: int | None = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.DEFAULT_RULES,
) -> LoadedModel:
    """The joint model of a working directory, at the newest checkpoint unless `step` is given.

    Parameters go to `mesh` as `rules` say, by default to the first device, wherever they were saved from.
    UserError if the directory, the checkpoint or the step is not there.
    """
    config, vocabulary, text_tokenizer, step = describe_model(workdir, step)
    checkpoint = JointCheckpoint(workdir, keep=None)
    try:
        params = checkpoint.restore_params(step, abstract_params(config, mesh, rules))
    finally:
        checkpoint.close()
    return LoadedModel(params, config, vocabulary, text_tokenizer, Codecs(workdir, vocabulary), step)


def describe_model(
    workdir: str | os.PathLike, step: int | None = None
) -> tuple[DecoderConfig, Vocabulary, TextTokenizer, int]:
    """All but the parameters of a working directory's model, and its step (the newest unless given).

    UserError if the directory, the checkpoint or the step is not there.
    """
    workdir = storage.locate(workdir)
    if not (workdir / CHECKPOINTS).is_dir():
        raise UserError(
            f"{workdir} holds no model (no {CHECKPOINTS}/ in it); give the --workdir of a training run."
        )
    vocabulary = Vocabulary.load(workdir / VOCABULARY)
    checkpoint = JointCheckpoint(workdir, keep=None)
    try:
        steps = checkpoint.all_steps()
        if not steps:
            raise UserError(f"{workdir} holds no finished checkpoint yet; train on, then try again.")
        step = _chosen_step(workdir, steps, step)
        meta = checkpoint.meta(step)
    finally:
        checkpoint.close()
    vocabulary.check(Vocabulary.from_json(meta["vocabulary"]), here=VOCABULARY, there=f"checkpoint {step}")
    text_tokenizer = TextTokenizer(workdir / TEXT_MODEL)
    return DecoderConfig(**meta["model"]), vocabulary, text_tokenizer, step


def training_config(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """The config that a checkpoint was trained with, as JSON values; empty of an imported one."""
    checkpoint = JointCheckpoint(workdir, keep=None)
    try:
        return checkpoint.meta(step)["config"]
    finally:
        checkpoint.close()


def _chosen_step(workdir: epath.Path, steps: list[int], step: int | None) -> int:
    """`step`, or the newest that is not damaged; says which are."""
    if step is None:
        step, faults = integrity.newest_whole(workdir, steps)
        for damaged, wrong in faults.items():
            print(f"Checkpoint {damaged} of {workdir} is damaged ({wrong}).", file=sys.stderr)
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint that is whole; make it again, or use a copy.")
    elif step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    elif wrong := integrity.fault(workdir, step):
        raise UserError(f"Checkpoint {step} of {workdir} is damaged ({wrong}); choose another step.")
    return step


def abstract_params(config: DecoderConfig, mesh: Mesh | None, rules: sharding.Rules) -> Any:
    """Shapes, dtypes and target shardings of the parameters; without a mesh, all on the first device."""
    mesh = sharding.make_mesh({}, jax.devices()[:1]) if mesh is None else mesh
    boxed = jax.eval_shape(lambda: init_boxed_params(config, 0))
    return sharding.with_shardings(nn.unbox(boxed), sharding.param_shardings(boxed, mesh, rules))
