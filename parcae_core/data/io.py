"""Writing that survives a crash and shares a folder with other processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    _sync_folder(folder)
    with suppress(FileExistsError):
        try:
            folder.rename(final)
        except OSError as error:
            if not final.is_dir():
                raise
            raise FileExistsError(error.errno, error.strerror, str(final)) from error
    _sync_folder(final.parent)


@contextmanager
def folder_lock(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `<folder>.lock` exclusively among the processes of this machine."""
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_still(handle, path):
            break
        # Its last holder removed it while we waited; the name is another file by now.
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
