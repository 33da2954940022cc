"""Writing that survives a crash and shares a folder with other processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def write_synced(path: Path, data: bytes) -> None:
    """Write a whole file under a temporary name, flush it to disk, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(folder: Path, final: Path) -> None:
    """Rename a complete folder to its final name; a folder already there is kept instead.

    Whoever finds it there has to check it: it was made by a process that did not share our lock
    (another machine, a file system without locks).
    """
    sync(folder)
    with suppress(FileExistsError):
        try:
            folder.rename(final)
        except OSError as error:
            if not final.is_dir():
                raise
            raise FileExistsError(error.errno, error.strerror, str(final)) from error
    sync(final.parent)


@contextmanager
def file_lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold `path` exclusively among the processes of this machine, however this one ends.

    Args:
        on_wait: called once if another process holds it, which is then waited for.

    Raises:
        filelock.Timeout: if another process holds it and `on_wait` is None.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if on_wait is None:
            raise
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits sees that the name is gone
        lock.release()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
