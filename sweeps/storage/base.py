"""What a sweep is stored in: the verbs of a storage, their errors, and the lease of a trial's folder.

A Store reads and writes files of this node only. Its storage makes them count for the other nodes:

    LocalStorage     the folder itself is what every node sees (sweeps.storage.local)
    ObjectStorage    the folder here is a working copy, pulled and pushed (sweeps.storage.bucket)
    Polling          either of them for a display: pulls seldom, and keeps old news over an error

Requests to an object store are repeated by a wrapper of their own (sweeps.storage.objects.Retrying).
What only an object store needs beside the verbs are functions (sweeps.storage.uploads, .data).

One process at a time writes in a trial's folder, also when a dead driver's or a lost node's worker
lives on: Ray declares a node dead when its raylet is silent, but the trial on it may run on. A new
attempt therefore takes the folder's lease, which the old worker looks at and stops by, and then
waits for the lock that ends with that worker's process. Where a file system does not carry locks
between machines, and in an object store, the lease alone remains; both then write the same bytes,
whole.
"""

from __future__ import annotations

import os
import shlex
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from parcae_core.data.io import Locked, file_lock
from parcae_core.errors import UserError
from sweeps.storage.files import TrialFiles, read_json, write_json
from sweeps.storage.objects import Retrying

POLL_EVERY_S = 2.0


class LeaseLost(Exception):
    """Another attempt took the folder; this one has to stop and write nothing more."""


class LeaseBusy(Exception):
    """The worker that had the folder did not let go in time."""


class Storage(Protocol):
    """A sweep's folder on this node and what the other nodes see of it, by five verbs."""

    place: str  # as a user would write it for --out
    root: Path  # the sweep's folder here
    work_root: Path  # the sweep's folder that this node's workers write in
    data_root: Path  # where this node prepares data

    @property
    def objects(self) -> Retrying | None:
        """What the other nodes see; None: they see the folder itself."""

    def list(self, below: str = "") -> dict[str, str]:
        """The files below a folder that all nodes see: name in the sweep's folder -> a mark that
        changes with the content."""

    def pull(self, paths: Iterable[Path] | None = None) -> None:
        """Make files here what the other nodes see; remove here what they do not see.

        Args:
            paths: None means the small files of the sweep and its trials that changed since the
                last time.
        """

    def push(self, *paths: Path) -> None:
        """Make the other nodes see files of the folder here, in this order."""

    def delete(self, *paths: Path) -> None:
        """Remove files, here and for the other nodes; absent ones are fine."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold the sweep for this driver; UserError if another one has it.

        If another takes it over later, this process gets SIGINT.
        """


class Polling:
    """A storage for a display: pulls not too often, and keeps old news rather than raise."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self._pulled_at = storage, -POLL_EVERY_S

    def pull(self, *, now: bool = False) -> None:
        """Pull what changed, if the last time is long enough ago."""
        if now or time.monotonic() - self._pulled_at >= POLL_EVERY_S:
            with suppress(OSError):
                self.storage.pull()
            self._pulled_at = time.monotonic()


def require_writable(storage: Storage) -> None:
    """Prove that a storage takes a file, and leave things as they were.

    Raises:
        UserError: with the system's reason.
    """
    probe = storage.root / f".probe-{uuid.uuid4().hex[:8]}"
    made = [f for f in (storage.root, *storage.root.parents) if not f.exists()]
    try:
        storage.root.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        storage.push(probe)
        storage.delete(probe)
    except OSError as error:
        raise UserError(
            f"{storage.place}/{storage.root.name}: cannot be written ({error}); check that the place "
            "exists and that you, or this machine's credentials, may write there, or give another "
            "with --out."
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink()  # it is still here if the place did not take it
        for new in made:  # innermost first
            if new.is_dir():
                new.rmdir()


def this_process() -> str:
    """For the message that somebody else gets."""
    return f"process {os.getpid()} on {os.uname().nodename}"


def busy(where: str, holder: str) -> UserError:
    """Another driver has the sweep."""
    return UserError(
        f"{where}: another `parcae run` is at work here ({holder}); wait for it, or look with "
        f"`parcae status {shlex.quote(where)}`."
    )


class Lease:
    """The right to write in a trial's folder; lease.json names the attempt that has it."""

    def __init__(self, folder: Path) -> None:
        self.file = TrialFiles(folder).lease
        before = read_json(self.file) or {}
        generation = before.get("generation", 0)
        self.content: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "generation": generation + 1 if isinstance(generation, int) else 1,
            "host": os.uname().nodename,
            "pid": os.getpid(),
        }
        self.orphan = bool(before) and not before.get("released", False)  # the attempt before
        self.lock = -1  # descriptor; a process that inherits it holds the folder as well
        self._held = True

    @property
    def owner(self) -> str:
        return self.content["owner"]

    def held(self) -> bool:
        """Whether no later attempt exists."""
        if self._held:
            self._held = (read_json(self.file) or {}).get("owner", self.owner) == self.owner
        return self._held

    def require(self) -> None:
        """Raise LeaseLost unless the lease is still held."""
        if not self.held():
            raise LeaseLost(f"{self.file.parent.name}: a later attempt has taken over")


@contextmanager
def lease(folder: Path, storage: Storage, *, wait_s: float) -> Iterator[Lease]:
    """Take a trial's folder over and hold it.

    Raises:
        LeaseBusy: if the former owner still runs after `wait_s` seconds.
        LeaseLost: if a later attempt came while this one waited.
    """
    files = TrialFiles(folder)
    storage.pull([files.lease])
    mine = Lease(folder)
    write_json(files.lease, mine.content)
    storage.push(files.lease)
    with ExitStack() as stack:
        try:
            waiting = file_lock(files.worker, wait_s=wait_s, while_waiting=mine.require)
            mine.lock = stack.enter_context(waiting)
        except Locked:
            raise LeaseBusy(
                f"{folder}: its former worker still runs after {wait_s:.0f} s"
            ) from None
        yield mine
