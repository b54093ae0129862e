"""Directories that are there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from anygpt_tokenizers.cli import UserError


@contextlib.contextmanager
def new_directory(out: str | os.PathLike) -> Iterator[str]:
    """A directory beside `out` to fill; it becomes `out` if the block ends well and vanishes if not.

    UserError if `out` exists and is not empty.
    """
    out = os.path.abspath(out)
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise UserError(f"{out} exists already; give another --out, or remove it first.")
    partial = f"{out}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        os.makedirs(partial)
    except OSError as error:
        raise UserError(f"{partial} cannot be made: {error.strerror}.") from error
    try:
        yield partial
        if os.path.isdir(out):
            os.rmdir(out)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
