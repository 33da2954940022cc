"""Temporary folders that do not outlive their process for long, even if it is killed.

A folder's owner holds a lock on a file in it, which the system lets go of when the owner ends. Whoever
makes the next folder of that kind removes those that nobody holds any more. Folders without the file
are not ours and are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

OWNER = ".owner"


class OwnedFolder:
    """A new temporary folder; removed by `close`, when it is collected, or after its process's end.

    Args:
        prefix: of its name; stale folders of this prefix are removed first.
        base: folder to make it in; by default the one for temporary files.
    """

    def __init__(self, prefix: str, base: str | None = None) -> None:
        base = base or tempfile.gettempdir()
        remove_stale(prefix, base)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        # Locked before it has its name: an owner file that is not locked has lost its owner
        unnamed = self.path / f"{OWNER}.new"
        lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, str(os.getpid()).encode())  # for people
        unnamed.rename(self.path / OWNER)
        self.close = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_stale(prefix: str, base: str) -> None:
    """Remove the folders of dead processes."""
    for owner in Path(base).glob(f"{prefix}*/{OWNER}"):
        try:
            lock = os.open(owner, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another user's, or just removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            _remove(owner.parent, lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.close(lock)
