"""Writing that survives a crash and shares a folder with other processes.

The only atomic writer and the only file lock of the project.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Locked(Exception):
    """Another process holds the lock."""


def write_synced(path: Path, data: bytes | str) -> None:
    """Write a whole file under a temporary name, flush it to disk, and rename it into place.

    Readers see the old content or the new. A str is written as UTF-8.
    """
    temporary = temporary_beside(path)
    data = data.encode() if isinstance(data, str) else data
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def temporary_beside(path: Path) -> Path:
    """A name that no other process of any machine takes, for a file that is renamed to `path`."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{uuid.uuid4().hex[:12]}.tmp")


def remove_leftovers(folder: Path, older_than_s: float = 600.0) -> None:
    """Remove what killed processes left under names of `temporary_beside`; younger ones may be live."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            is_ours = re.fullmatch(r"\..+-[0-9a-f]{12}\.tmp", path.name) is not None
            if is_ours and time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def publish(folder: Path, final: Path) -> None:
    """Rename a complete folder to its final name; a folder already there is kept instead.

    A process that finds it there has to check it: it was made by a process that did not share our lock
    (another machine, a file system without locks).
    """
    sync(folder)
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    sync(final.parent)


@contextmanager
def whole_folder(final: Path, temporary: Path) -> Iterator[None]:
    """Fill `temporary` inside; without an error it lies on the disk under its final name then."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield
        sync(temporary)
        temporary.rename(final)
        sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def file_lock(
    path: Path, *, wait_s: float = 0.0, while_waiting: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Hold a file exclusively among the processes of this machine; the file stays.

    The system releases the lock when the process ends, however it ends.

    Args:
        wait_s: how long to wait for another holder; -1 waits for ever.
        while_waiting: called at every look at the lock; what it raises ends the wait.

    Yields:
        The descriptor; a process that inherits it holds the lock as well.

    Raises:
        Locked: if another process still holds it after `wait_s`.
    """
    import filelock  # 0.05 s, which `parcae plan` does not need

    descriptors: list[int] = []
    lock = filelock.UnixFileLock(
        path,
        mode=0o644,
        thread_local=False,
        fallback_to_soft=False,  # a soft lock would outlive a killed process
        on_acquired=descriptors.append,
    )
    try:
        lock.acquire(wait_s, poll_interval=0.1, cancel_check=lambda: bool(while_waiting()))
    except filelock.Timeout:
        raise Locked(str(path)) from None
    try:
        yield descriptors[0]
    finally:
        lock.release()


@contextmanager
def folder_lock(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `<folder>.lock`, which goes with the lock, for as long as it takes to get it."""
    path = folder.with_name(f"{folder.name}.lock")
    with file_lock(path, wait_s=-1, while_waiting=on_wait):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
