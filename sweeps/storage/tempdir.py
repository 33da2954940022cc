"""Temporary folders that do not outlive their process for long, even if it is killed.

A folder's owner holds a lock on a file in it, which the system lets go of when the owner ends. Whoever
makes the next folder of that kind removes those that nobody holds any more. Folders without the file
are not ours and are left alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path

from parcae_core.data.io import Locked, file_lock

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
        unnamed, lock = self.path / f"{OWNER}.new", ExitStack()
        lock.enter_context(file_lock(unnamed))
        unnamed.write_text(str(os.getpid()))  # for people
        unnamed.rename(self.path / OWNER)
        self.close = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_stale(prefix: str, base: str) -> None:
    """Remove the folders of dead processes."""
    for owner in Path(base).glob(f"{prefix}*/{OWNER}"):
        with suppress(Locked, OSError), file_lock(owner):  # another user's, or just removed
            shutil.rmtree(owner.parent, ignore_errors=True)


def _remove(folder: Path, lock: ExitStack) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()
