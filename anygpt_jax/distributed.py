"""Several hosts as one run: how they find each other, and what is checked before the first step."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from anygpt_tokenizers.cli import UserError
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax import storage

AUTO = "auto"
SECONDS = 60  # until hosts that are missing or hang end the run
_ANSWER_SECONDS = 3  # for the coordination service to say who is missing
_TOGETHER_SECONDS = 10  # between the first and the last host that end for the same reason
_UNKNOWN = "a host is missing or hangs"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "anygpt_jax")
_TEXT_BYTES = 1024  # of one host's description when hosts exchange them


def start(
    workdir: str | os.PathLike,
    coordinator: str | None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process with the others; call it before anything else of JAX.

    Args:
      workdir: The directory of the run, which all hosts share; there they leave word until all have come.
      coordinator: None for a run of one process; "auto" where the cluster says who is there (Cloud TPU, GKE,
        Slurm, Open MPI); else HOST:PORT of process 0, with the other two arguments.

    A host that waits for the others longer than SECONDS ends with one sentence: who did not come or, with
    "auto", who did.

    Raises:
      UserError: the arguments do not belong together, or the cluster does not say who is there.
    """
    if coordinator is None:
        return
    where = {} if coordinator == AUTO else {"coordinator_address": coordinator}
    if coordinator != AUTO and (num_processes is None or process_id is None):
        raise UserError(f"--coordinator={coordinator} needs --num_processes and --process_id.")
    whom = f"{num_processes or 'all'} hosts at {coordinator}" if where else "the cluster's hosts"
    arrival = _Arrival(f"waiting for {whom}", storage.locate(workdir), num_processes, process_id)
    try:
        # When jax's own time is over it aborts the process with a stack trace; ours ends first.
        with _watchdog(arrival), arrival.announced():
            jax.distributed.initialize(
                **where,
                num_processes=num_processes,
                process_id=process_id,
                initialization_timeout=3 * SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The hosts did not find each other: {reason}") from error


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
    """Ends this process at once when its body fails here alone: with the exit code of any run.

    Left to JAX it would wait five minutes for the other hosts, which wait for it in a collective, and end by
    a signal. Once it is gone JAX ends the others as after the loss of any host.
    """
    try:
        yield
    except BaseException as error:
        if _client() is None or _all_end():  # None: a run of one process
            raise
        match error:
            case UserError():
                text, code = f"error: {error}", 2
            case KeyboardInterrupt():
                text, code = "interrupted", 130
            case _:
                text, code = traceback.format_exc(), 1
        print(text, file=sys.stderr, flush=True)
        os._exit(code)


def _all_end() -> bool:
    """Whether all hosts come here within seconds of each other."""
    try:
        _client().wait_at_barrier("anygpt_jax/end", _TOGETHER_SECONDS * 1000)
    except RuntimeError:  # some are elsewhere, or the host that would answer is gone
        return False
    return True


def is_primary() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def on_primary(action: Callable[[], None]) -> None:
    """Runs what is done once while the others wait; a UserError of it is raised on every process."""
    message = ""
    if is_primary():
        try:
            action()
        except UserError as error:
            message = str(error)
    if jax.process_count() > 1:
        message = _gather_texts(message)[0]
    if message:
        raise UserError(message)


def preflight(workdir: str | os.PathLike, config: Any) -> None:
    """Checks that all hosts run the same thing, compute together and see one working directory.

    UserError on every host, naming the odd one; a host that hangs ends the run after SECONDS, and is named.
    """
    if jax.process_count() == 1:
        return
    stage = _Stage("the preflight")
    with _watchdog(stage):
        stage.begin("comparing the hosts' versions and configs")
        _compare(_gather_texts(json.dumps(_description(config))))
        stage.begin("adding up a number from every device")
        _check_sum()
        stage.begin(f"writing to {workdir}")
        _check_shared(storage.locate(workdir))


class _Arrival:
    """A host on its way into the run: JAX's service answers no question before all have come, so each leaves
    the time of its start in the working directory."""

    _PREFIX = ".waiting-"

    def __init__(
        self, name: str, workdir: epath.Path, num_processes: int | None = None, process_id: int | None = None
    ):
        self.name = name
        self._workdir = workdir
        self._num_processes = num_processes
        label = socket.gethostname() if process_id is None else process_id
        self._word = workdir / f"{self._PREFIX}{label}"

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """This host's word lies there until the body is through; after a failure it stays for the others."""
        storage.make_directory(self._workdir)
        storage.write_text(self._word, str(time.time()))
        yield
        self._word.unlink(missing_ok=True)

    def who_is_missing(self) -> str:
        """The hosts that left no word of late, or those that did where their number is not known."""
        late = time.time() - 2 * SECONDS  # older words are of another attempt
        words = [name for name in storage.names(self._workdir) if name.startswith(self._PREFIX)]
        try:
            started = {name: float(storage.read_text(self._workdir / name)) for name in words}
        except (OSError, ValueError, UserError):  # taken away meanwhile, or the storage does not answer
            return _UNKNOWN
        here = {name.removeprefix(self._PREFIX) for name, at in started.items() if at > late}
        if self._num_processes is None:
            return f"these have come: {', '.join(sorted(here))}"
        absent = [str(index) for index in range(self._num_processes) if str(index) not in here]
        if not absent:
            return "all have come, but cannot reach that address"
        return f"host{'s' * (len(absent) > 1)} {', '.join(absent)} left no word in {self._workdir}"


class _Stage:
    """What is being done, and which hosts have come to it: each leaves a key at the coordination service."""

    def __init__(self, name: str):
        self.name = name
        self._key: str | None = None

    def begin(self, name: str) -> None:
        """This host comes to the stage `name`."""
        self.name, self._key = name, f"anygpt_jax/stage/{next(_STAGES)}/"
        _client().key_value_set(f"{self._key}{jax.process_index()}", "here")

    def who_is_missing(self) -> str:
        """The hosts that did not come, as far as that can be told."""
        if self._key is None:  # no host has said where it is
            return _UNKNOWN
        try:
            keys = _client().key_value_dir_get(self._key)
        except RuntimeError:  # the host that would answer is gone
            return _UNKNOWN
        here = {int(key.rpartition("/")[2]) for key, _ in keys}
        absent = [str(index) for index in range(jax.process_count()) if index not in here]
        if not absent:
            return "every host came to it, and one hangs in it"
        return f"host{'s' * (len(absent) > 1)} {', '.join(absent)} did not come to it"


def _client() -> Any:
    """This host's connection to the coordination service."""
    from jax._src import distributed  # no public name gives it

    return distributed.global_state.client


_STAGES = itertools.count()  # the same on all hosts, for all go through the same stages


def _check_sum() -> None:
    """Every device has a number of its own and sums those of all; UserError naming a host that is wrong."""
    count = jax.device_count()
    numbers = np.arange(1, count + 1, dtype=np.int32)
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    one_each = NamedSharding(mesh, PartitionSpec("devices"))
    array = jax.make_array_from_callback((count,), one_each, lambda index: numbers[index])

    def add_up(number: jax.Array) -> jax.Array:
        return jax.lax.psum(number, "devices")

    # Unchecked: what each device has got is compared here, not taken to be the same.
    summed = jax.shard_map(
        add_up, mesh=mesh, in_specs=one_each.spec, out_specs=PartitionSpec(), check_vma=False
    )
    found = {int(shard.data[0]) for shard in jax.jit(summed)(array).addressable_shards}
    expected = str([int(numbers.sum())])
    for index, text in enumerate(_gather_texts(str(sorted(found)))):
        if text != expected:
            raise UserError(
                f"The devices of host {index} add up the numbers of all {count} to {text}, not {expected}; "
                "replace that host or its network."
            )


def _description(config: Any) -> dict[str, str]:
    """What has to be the same everywhere."""
    fields = json.dumps(config.to_dict(), sort_keys=True, default=str)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        **versions,
        "Python": ".".join(map(str, sys.version_info[:2])),
        "config": hashlib.sha256(fields.encode()).hexdigest()[:16],
        "number of devices": str(jax.local_device_count()),
    }


def _gather_texts(text: str) -> list[str]:
    """The text of every process, in their order."""
    data = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES)
    gathered = multihost_utils.process_allgather(np.frombuffer(data, np.uint8))
    return [bytes(row).decode(errors="ignore").rstrip() for row in np.asarray(gathered)]


def _compare(texts: list[str]) -> None:
    descriptions: list[Mapping[str, str]] = [json.loads(text) for text in texts]
    for name in descriptions[0]:
        values = [description[name] for description in descriptions]
        usual = Counter(values).most_common(1)[0][0]
        odd = [index for index, value in enumerate(values) if value != usual]
        if odd:
            raise UserError(
                f"Host {odd[0]} has {name} {values[odd[0]]}, most have {usual}; start all from the same "
                "environment with the same arguments."
            )


def _check_shared(workdir: epath.Path) -> None:
    """Every host reads what the first has written."""
    probe, token = workdir / ".preflight", str(jax.process_count())

    def write() -> None:
        storage.make_directory(workdir)
        storage.write_text(probe, token)

    on_primary(write)
    seen = probe.exists() and storage.read_text(probe) == token
    blind = [index for index, text in enumerate(_gather_texts(str(seen))) if text != "True"]
    if is_primary():
        probe.unlink()
    if blind:
        raise UserError(
            f"Host {blind[0]} does not see what host 0 wrote to {workdir}; the working directory must be on "
            "storage that all hosts share."
        )


@contextlib.contextmanager
def _watchdog(stage: _Arrival | _Stage) -> Iterator[None]:
    """Ends the process when its body takes longer than SECONDS: a collective that hangs cannot be left."""

    def give_up():
        found = [_UNKNOWN]
        # Apart, for the host that would answer may hang itself.
        asking = threading.Thread(target=lambda: found.append(stage.who_is_missing()), daemon=True)
        asking.start()
        asking.join(_ANSWER_SECONDS)
        print(f"error: {stage.name} took over {SECONDS} s; {found[-1]}.", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
