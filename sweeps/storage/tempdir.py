"""Temporary folders that do not outlive their process for long, even if it is killed.

A folder's owner holds a lock on a file in it, which the system lets go of when the owner ends. A process that
makes the next folder of that kind removes those that nobody holds any more. Folders without the file
are not ours and are left alone.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path

from parcae_core.data.io import Locked, file_lock
from parcae_core.errors import UserError

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
    """Remove the folders of dead processes of this user."""
    for owner in Path(base).glob(f"{prefix}*/{OWNER}"):
        # Another user's folder may hold links to our files, so it is not even opened
        with suppress(Locked, OSError):  # or it was just removed
            if _is_ours(owner.parent):
                with file_lock(owner):
                    shutil.rmtree(owner.parent, ignore_errors=True)


def private_folder(path: Path) -> Path:
    """Make a folder below a place that every user may write in, for this user alone.

    Raises:
        UserError: if somebody else made it first, or it is a link: what is put there could be read,
            and what is found there could come from anybody.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not _is_ours(path):
        raise UserError(
            f"{path}: it belongs to another user or is a link, and this program would work in it; "
            "remove it, or give another place for temporary files with TMPDIR"
        )
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)  # of an older version
    return path


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _remove(folder: Path, lock: ExitStack) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()
