"""How a run ends: stopped by a signal, diverged, or on a full disk; always with one sentence."""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from anygpt_tokenizers.cli import UserError
from jax.experimental import multihost_utils

from anygpt_jax.checkpoint import JointCheckpoint

DIVERGED = 3  # exit code; not 1, with which a process ends that another host left, and which may be restarted
_NO_SPACE = os.strerror(errno.ENOSPC)


class DivergedError(Exception):
    """The loss or a gradient is not finite; the message names the step and the checkpoint that stands."""


class StoppedError(Exception):
    """A signal asked for an end and the state was saved; `signum` is the signal."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def exit_code(run: Callable[[], Any]) -> int:
    """Calls `run`, which trains: 0 when it is done, DIVERGED if it is, 128 + signal if it was stopped.

    The reason goes to stderr.
    """
    try:
        run()
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return DIVERGED
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 128 + error.signum
    return 0


@contextlib.contextmanager
def disk_space(checkpoint: JointCheckpoint) -> Iterator[None]:
    """Says in one sentence that the disk is full, and what stands."""
    for name in ("absl", "asyncio"):  # Orbax's threads and tasks, of which some end later than the run
        logging.getLogger(name).addFilter(_is_news)
    try:
        yield
    except Exception as error:
        if not _disk_is_full(error):
            raise
        good = checkpoint.latest_step()
        stands = "no checkpoint is there yet" if good is None else f"the checkpoint of step {good} stands"
        raise UserError(
            f"No space is left on the disk of {checkpoint.workdir}; {stands}. Make room, then run the same "
            "command again: it continues from there."
        ) from error


def make_room(checkpoint: JointCheckpoint) -> Callable[..., None]:
    """An exit for when the disk is full: without the unfinished checkpoint the logs can still be closed."""

    def leave(_, error: BaseException | None, __) -> None:
        if error is not None and _disk_is_full(error):
            checkpoint.discard_unfinished()

    return leave


def _is_news(record: logging.LogRecord) -> bool:
    """Not what a library's threads each tell of a full disk, with a traceback; `disk_space` says it once."""
    error = record.exc_info[1] if record.exc_info else None
    return not (_NO_SPACE in record.getMessage() or (error is not None and _disk_is_full(error)))


def _disk_is_full(error: BaseException) -> bool:
    """Whether the error, or one that it comes from, is a write to a full disk."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if _NO_SPACE in str(error):  # all that Orbax passes on
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _disk_is_full(cause)


class StopSignals:
    """While entered, SIGTERM and the first SIGINT are only noted; a second SIGINT interrupts.

    With several processes JAX's own service notes a SIGTERM to any of them and finds the step at which all
    of them can stop.
    """

    def __init__(self):
        self.signum = 0
        self._previous: dict[int, Any] = {}
        self._alone = jax.process_count() == 1

    def agreed(self, step: int) -> int:
        """The signal that ends the run after this step, on every process; 0 if none does."""
        if self._alone:
            return self.signum
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0

    def __enter__(self) -> "StopSignals":
        # Outside the main thread Python forbids handlers.
        if self._alone and threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _: object) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
