"""One writer per trial folder, also when a dead driver's or a lost node's worker lives on.

Ray declares a node dead when its raylet is silent, but the trial on it may run on and write. A new
attempt therefore raises the folder's generation, which the old worker looks at and stops by, and
then waits for the lock that ends with that worker's process. Where a file system does not carry
locks between machines, and in an object store, the generation alone remains; both then write the
same bytes, whole.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.storage.base import Storage
from sweeps.storage.files import read_json, write_json


class LeaseLost(Exception):
    """Another attempt took the folder; this one has to stop and write nothing more."""


class LeaseBusy(Exception):
    """The worker that had the folder did not let go in time."""


class Lease:
    """The right to write in a trial's folder."""

    def __init__(self, folder: Path, owner: str, generation: int) -> None:
        self.folder, self.owner, self.generation = folder, owner, generation
        self._asked_at, self._held = 0.0, True
        self.said: dict[str, Any] = {}  # what lease.json holds
        self.orphan = False  # whether the attempt before did not let go of its own accord
        self.lock: int | None = None  # descriptor; whoever inherits it holds the folder as well

    def held(self, *, max_age_s: float = 0.0) -> bool:
        """Whether no later attempt exists, as of at most `max_age_s` ago."""
        if self._held and time.monotonic() - self._asked_at >= max_age_s:
            said = read_json(self.folder / "lease.json") or {}
            self._held = said.get("owner", self.owner) == self.owner
            self._asked_at = time.monotonic()
        return self._held

    def require(self) -> None:
        """Raise LeaseLost unless the lease is still held."""
        if not self.held():
            raise LeaseLost(f"{self.folder.name}: a later attempt has taken over")


@contextmanager
def lease(folder: Path, *, wait_s: float, storage: Storage | None = None) -> Iterator[Lease]:
    """Take the folder over and hold it.

    Args:
        storage: of the folder, where that is not what every node sees.

    Raises:
        LeaseBusy: if the former owner still runs after `wait_s` seconds.
    """
    path = folder / "lease.json"
    if storage is not None:
        storage.pull(path)
    before = read_json(path) or {}
    mine = Lease(folder, uuid.uuid4().hex, before.get("generation", 0) + 1)
    mine.orphan = bool(before) and not before.get("released", False)
    mine.said = {
        "owner": mine.owner,
        "generation": mine.generation,
        "host": os.uname().nodename,
        "pid": os.getpid(),
    }
    write_json(path, mine.said)
    if storage is not None:
        storage.push(path)
    with (folder / ".worker").open("w") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                mine.require()
                if time.monotonic() > deadline:
                    raise LeaseBusy(
                        f"{folder}: its former worker still runs after {wait_s:.0f} s"
                    ) from None
                time.sleep(0.2)
        mine.lock = file.fileno()
        yield mine
