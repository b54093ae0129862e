"""Where a run's files live: on a disk, or in a Cloud Storage bucket (gs://bucket/path, with the extra `gcs`).

Paths are etils.epath.Path, which Orbax uses too. On a disk a file is replaced at once (written beside, then
renamed); in a bucket an object is there whole or not at all, so it is written where it belongs. What only
knows how to write local files (codecs, logs) writes to an `Outbox`, and reads what `fetch` returns.
"""

import atexit
import contextlib
import dataclasses
import errno
import fcntl
import functools
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from anygpt_tokenizers.cli import UserError
from etils import epath

# etils would use TensorFlow where that is installed. gcsfs would ask another service, by gRPC, what kind of
# bucket it is, and for every file again if it hears nothing.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

_GCS = "gs://"
_LOCK = ".lock"
PATIENCE = 120  # seconds; on a network file system a lost host keeps its locks for about 90
_PIECE = 16 << 20  # bytes read at a time
_SECONDS = 30  # until a bucket that does not answer is given up


def locate(path: str | os.PathLike) -> epath.Path:
    """The absolute path of a file or directory that may be in a bucket.

    UserError if it is an address of another kind, if the extra `gcs` is missing, or if its bucket does not
    exist, cannot be opened or may not be read.
    """
    path = os.fspath(path)
    if path.startswith(_GCS):
        _open_bucket(path.removeprefix(_GCS).partition("/")[0])
        return epath.Path(path)
    refuse_address(path, "mount it and give the path where it is mounted")
    return epath.Path(os.path.abspath(path))


def refuse_address(path: str | os.PathLike, instead: str) -> None:
    """A UserError that says what to do instead if `path` is an address and only a local path will do."""
    if "://" in os.fspath(path):
        raise UserError(f"{os.fspath(path)} is an address, which cannot be used here; {instead}.")


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is one of Cloud Storage."""
    return os.fspath(path).startswith(_GCS)


def make_directory(path: epath.Path) -> None:
    """Makes a directory where it is missing; UserError if it is a file or may not be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not in_bucket(path):  # which says so itself when something is written there
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be used as a directory to write to ({error.strerror or error}); give another one."
        ) from error


@contextlib.contextmanager
def held(directory: epath.Path) -> Iterator[None]:
    """Nobody else holds the directory meanwhile; UserError if somebody does for PATIENCE seconds more.

    A bucket knows no such lock, nor do some file systems of clusters, which is said.
    """
    if in_bucket(directory):
        yield
        return
    with open(directory / _LOCK, "a") as file:
        try:
            _lock(file, directory)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(f"{directory} has no locks: see that no second run writes to it.", file=sys.stderr)
        yield


def _lock(file: IO[str], directory: epath.Path) -> None:
    end = time.monotonic() + PATIENCE
    for attempt in itertools.count():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise UserError(
                    f"Another run is writing to {directory}; wait for its end, or give another --workdir."
                ) from None
        if attempt == 0:
            print(f"Another run is writing to {directory}; waiting up to {PATIENCE} s.", file=sys.stderr)
        time.sleep(1)


def names(directory: epath.Path) -> list[str]:
    """The names of what lies directly in a directory; none if it is not there."""
    try:
        return [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file or object; FileNotFoundError if it is not there."""
    return locate(path).read_bytes()


def read_text(path: str | os.PathLike) -> str:
    """The content of a file or object in UTF-8."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file; whoever reads it meanwhile finds the old one or the new one.

    UserError if the bucket may not be written.
    """
    path = locate(path)
    if in_bucket(path):
        with _permitted(path):
            path.write_bytes(data)
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Like `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


@dataclasses.dataclass(frozen=True)
class File:
    """A stored file: bytes, and a function that gives its checksum.

    That is an integer (CRC-32) of a file, whose bytes are read for it, and a text (CRC-32C in base64) of an
    object, which the service has computed itself when it was written.
    """

    size: int
    checksum: Callable[[], int | str]


def files(directory: epath.Path) -> dict[str, File]:
    """All files below a directory, by their path relative to it."""
    if in_bucket(directory):
        start = len(os.fspath(directory)) - len(_GCS) + 1
        return {
            name[start:]: File(int(about["size"]), functools.partial(about.get, "crc32c"))
            for name, about in _file_system().find(os.fspath(directory), detail=True).items()
            if not name.endswith("/")  # empty objects that stand for directories
        }
    paths = (path for path in sorted(Path(directory).rglob("*")) if path.is_file())
    return {
        str(path.relative_to(directory)): File(path.stat().st_size, functools.partial(_crc32, path))
        for path in paths
    }


def move(source: epath.Path, target: epath.Path) -> None:
    """Moves a directory to a place where nothing is; in a bucket its objects are copied, then deleted."""
    if not in_bucket(source):
        os.replace(source, target)
        return
    system = _file_system()
    with _permitted(target):
        for name in files(source):
            system.cp_file(os.fspath(source / name), os.fspath(target / name))
        system.rm(os.fspath(source), recursive=True)


def fetch(directory: epath.Path) -> str:
    """A local directory with the same files: on a disk itself, else a copy, kept until the process ends."""
    if not in_bucket(directory):
        return os.fspath(directory)
    copy = tempfile.mkdtemp(prefix="anygpt_jax_")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name in files(directory):
        _file_system().get_file(os.fspath(directory / name), os.path.join(copy, name))
    return copy


class Outbox:
    """A local directory for what is to be in `directory`: itself on a disk, else one that is copied there.

    Used as a context it is copied when the block ends well.

    Attributes:
      path: where to write.
      copied: whether that is not the directory itself.
    """

    def __init__(self, directory: epath.Path):
        self._target = directory
        self.copied = in_bucket(directory)
        if not self.copied:
            directory.mkdir(parents=True, exist_ok=True)
        self.path = tempfile.mkdtemp(prefix="anygpt_jax_") if self.copied else os.fspath(directory)

    def send(self) -> None:
        """Copies what was written so far to the bucket."""
        if not self.copied:
            return
        with _permitted(self._target):
            for name in files(epath.Path(self.path)):
                _file_system().put_file(os.path.join(self.path, name), os.fspath(self._target / name))

    def close(self) -> None:
        """Ends its use; what was not sent to the bucket is gone."""
        if self.copied:
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.send()
        finally:
            self.close()


@functools.cache
def _open_bucket(name: str) -> None:
    """Asks for a bucket as Orbax will, once per process."""
    if not name:
        raise UserError(f"{_GCS} names no bucket; give {_GCS}BUCKET/PATH.")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{_GCS}{name} needs the extra `gcs`: pip install 'anygpt_jax[gcs]'.")
    import fsspec
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    # gcsfs remembers what it has listed for ever, but TensorStore and other hosts write there too.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    try:
        storage.Client().get_bucket(name, retry=DEFAULT_RETRY.with_timeout(_SECONDS))
    except exceptions.NotFound as error:
        raise UserError(
            f"There is no bucket {_GCS}{name}; make it (gcloud storage buckets create {_GCS}{name}) or give "
            "another one."
        ) from error
    except exceptions.Forbidden as error:
        raise UserError(
            f"The bucket {_GCS}{name} may not be read ({error.message}); the account needs the role Storage "
            "Admin there, or Storage Object User and storage.buckets.get."
        ) from error
    except (exceptions.GoogleAPIError, GoogleAuthError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The bucket {_GCS}{name} cannot be opened: {reason}") from error


def _file_system() -> Any:
    """fsspec's view of Cloud Storage; a bucket was opened before."""
    import fsspec

    return fsspec.filesystem("gs")


@contextlib.contextmanager
def _permitted(path: epath.Path) -> Iterator[None]:
    """Says in one sentence that a bucket may not be written."""
    try:
        yield
    except OSError as error:
        if not str(error).startswith("Forbidden"):  # gcsfs has no class of its own for this
            raise
        reason = str(error).splitlines()[-1]
        raise UserError(
            f"{path} may not be written ({reason}); the account needs the role Storage Object User there."
        ) from error


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc
