"""What a sweep's folder is kept in: a disk that every node sees, or an object store.

A Store reads and writes local files only. Its storage makes them count for the other nodes:

    LocalStorage     the folder itself is what everybody sees; there is nothing to do
    ObjectStorage   the folder here is a working copy (of a driver or a reader: a view of the small files,
             removed afterwards; of a worker: the trial's folder), fetched and published

What reaches an object store, and in which order, so that whatever is there is whole:
    small files     one object each, replaced at once
    a checkpoint    its checkpoint.json last, and first to go: without it the others do not count
    the result      when it is written, again and again until the store has taken it
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from parcae_core.errors import UserError
from sweeps.storage.files import require_writable, write_atomic
from sweeps.storage.objects import Objects, Unreachable, is_url
from sweeps.storage.tempdir import OwnedFolder

if TYPE_CHECKING:
    from parcae_core.trial import Trial
    from sweeps.storage.lease import Lease

# What a view of a sweep holds; checkpoints and metrics stay where they are
_SMALL = re.compile(r"(sweep\.json|spec\.yaml|[^/]+/(trial|state|result)\.json|[^/]+/error\.txt)")
POLL_EVERY_S = 2.0
# An object store has no lock that ends with a process, so the driver renews its own; one that was
# not renewed for this long belongs to a dead driver
DRIVER_RENEWS_S, DRIVER_GONE_S = 4.0, 16.0


class Storage(Protocol):
    """How a sweep's local folder relates to what other nodes see."""

    place: str  # as a user would write it for --out
    local: Path  # the folder here that holds the sweep's folder
    data_root: Path  # where this node prepares data

    def refresh(self, only: set[str] | None = None) -> None:
        """Bring the small files here up to date (of all trials, or of some)."""

    def poll(self, *, now: bool = False) -> None:
        """`refresh` for a display: not too often, and old news rather than an error."""

    def require_writable(self) -> None:
        """Raise UserError if nothing can be written there."""

    def pull_trial(self, trial_id: str, *others: str) -> None:
        """Bring a trial's small files, and others of the sweep's folder, to a worker."""

    def pull(self, path: Path) -> None:
        """Bring one file here; remove it here if it is not there."""

    def pull_folder(self, folder: str, *, own: bool = False) -> None:
        """Bring what the sweep and all its trials (or, with `own`, the sweep alone) have in a folder
        of that name here."""

    def push(self, *paths: Path) -> None:
        """Make files of the folder here count, in this order."""

    def delete(self, *paths: Path) -> None:
        """Remove files, here and there."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the sweep for this driver; UserError if another one has it."""

    def siblings(self) -> list[str]:
        """Names of the other sweeps in the same place."""

    def at_work(
        self, trial: Trial, held: Lease, follow: tuple[Path, ...]
    ) -> contextlib.AbstractContextManager[None]:
        """While a trial runs in its folder here: what it leaves there is published beside it, and
        the files to follow appear here when they appear there."""

    def join(self, trial: Trial, checkpoint: str | None) -> None:
        """Make this node's folder of a trial ready for a process that trains with others from
        `checkpoint`."""

    def worked_on_here(self) -> list[Path]:
        """Folders of the sweep in which this node's workers look, beside the store's own."""

    def share_data(self, folder: Path) -> str:
        """Let all nodes have a prepared folder; how they ask for it with `data_dir`."""

    def data_dir(self, shared: str) -> Path:
        """A prepared folder on this node."""


def storage_of(out: str | Path, sweep: str, *, working: bool) -> Storage:
    """The storage for an --out.

    Args:
        working: for a worker, which keeps its trials' folders here from attempt to attempt.
    """
    return (
        ObjectStorage(str(out), sweep, working=working)
        if is_url(out)
        else LocalStorage(Path(out), sweep)
    )


class LocalStorage:
    """A folder that every node sees at the same path: what is written there counts at once."""

    def __init__(self, out: Path, sweep: str) -> None:
        self.local = out.absolute()
        self.place, self.data_root = str(self.local), self.local / "_data"
        self.root, self.sweep = self.local / sweep, sweep

    def refresh(self, only: set[str] | None = None) -> None:
        pass

    def poll(self, *, now: bool = False) -> None:
        pass

    def require_writable(self) -> None:
        require_writable(self.root)

    def pull_trial(self, trial_id: str, *others: str) -> None:
        pass

    def pull(self, path: Path) -> None:
        pass

    def pull_folder(self, folder: str, *, own: bool = False) -> None:
        pass

    def push(self, *paths: Path) -> None:
        pass

    def delete(self, *paths: Path) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """It goes with the process, however that ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".driver").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise _busy(str(self.root), file.read().strip()) from None
            file.truncate(0)
            file.write(_this_process())
            file.flush()
            yield

    def siblings(self) -> list[str]:
        found = sorted(p.parent.name for p in self.local.glob("*/sweep.json"))
        return [name for name in found if name != self.sweep]

    @contextmanager
    def at_work(self, trial: Trial, held: Lease, follow: tuple[Path, ...]) -> Iterator[None]:
        yield

    def join(self, trial: Trial, checkpoint: str | None) -> None:
        pass

    def worked_on_here(self) -> list[Path]:
        return []

    def share_data(self, folder: Path) -> str:
        return str(folder)

    def data_dir(self, shared: str) -> Path:
        return Path(shared)


class ObjectStorage:
    """An object store, and a folder of this node for what is being worked on."""

    def __init__(self, out: str, sweep: str, *, working: bool) -> None:
        scheme, _, rest = out.partition(":/")
        self.place, self.sweep = f"{scheme}://{rest.strip('/')}", sweep
        self.objects = Objects(f"{self.place}/{sweep}")
        self.work = work_folder(self.place)
        self.data_root = self.work / "_data"
        self.local = self.work
        if not working:
            self._view = OwnedFolder("parcae-view-")
            self.local = self._view.path
        self.root = self.local / sweep
        self._seen: dict[str, str] = {}
        self._polled_at = 0.0

    # ---- a view --------------------------------------------------------------------------------

    def refresh(self, only: set[str] | None = None) -> None:
        listed = {
            name: mark
            for name, mark in self.objects.listing().items()
            if _SMALL.fullmatch(name) and (only is None or name.partition("/")[0] in only)
        }
        changed = [name for name, mark in listed.items() if self._seen.get(name) != mark]
        for name, content in self.objects.read_many(changed).items():
            self._write(name, content)
        for name in self._seen.keys() - listed.keys():
            (self.root / name).unlink(missing_ok=True)
        self._seen = listed

    def poll(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._polled_at < POLL_EVERY_S:
            return
        with contextlib.suppress(OSError):
            self.refresh()
        self._polled_at = time.monotonic()

    def _write(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.decode())

    # ---- single files --------------------------------------------------------------------------

    def name_of(self, path: Path) -> str:
        """An object's name from its path here."""
        return path.relative_to(self.root).as_posix()

    def require_writable(self) -> None:
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.objects.write(probe, b"", patience_s=20.0)
            self.objects.remove([probe], patience_s=20.0)
        except OSError as error:
            raise UserError(
                f"{self.objects.url}: cannot be written ({error}); check that the bucket exists and "
                "that this machine's credentials may write there, or give another place with --out."
            ) from error

    def pull_trial(self, trial_id: str, *others: str) -> None:
        names = [
            f"{trial_id}/{n}" for n in ("trial.json", "state.json", "result.json", "error.txt")
        ]
        found = self.objects.read_many([*names, *others])
        for name, content in found.items():
            self._write(name, content)
        for name in (*names, *others):
            # A result that is only here is one that the store would not take: it still counts
            if name not in found and not name.endswith("/result.json"):
                (self.root / name).unlink(missing_ok=True)

    def pull(self, path: Path) -> None:
        content = self.objects.read(self.name_of(path))
        if content is None:
            path.unlink(missing_ok=True)
        else:
            self._write(self.name_of(path), content)

    def pull_folder(self, folder: str, *, own: bool = False) -> None:
        for name in self.objects.listing():
            if folder in name.split("/")[: 1 if own else 2]:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                self.objects.download(name, self.root / name)

    def push(self, *paths: Path) -> None:
        for path in paths:
            self.objects.upload(path, self.name_of(path))

    def delete(self, *paths: Path) -> None:
        self.objects.remove(map(self.name_of, paths))
        for path in paths:
            path.unlink(missing_ok=True)

    # ---- the sweep -----------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """An object that is renewed: one that stays as it is belongs to a driver that is dead."""
        mine = {"owner": uuid.uuid4().hex, "who": _this_process()}
        began, before = time.monotonic(), self.objects.read(".driver")
        while before is not None and time.monotonic() - began < DRIVER_GONE_S:
            time.sleep(DRIVER_RENEWS_S / 4)
            now = self.objects.read(".driver")
            if now is not None and now != before:
                raise _busy(self.objects.url, _who(now))
            before = now
        over = threading.Event()

        def renew() -> None:
            beat = 0
            while not over.wait(DRIVER_RENEWS_S):
                beat += 1
                with contextlib.suppress(OSError):
                    text = json.dumps(mine | {"beat": beat})
                    self.objects.write(".driver", text.encode(), patience_s=DRIVER_RENEWS_S)

        self.objects.write(".driver", json.dumps(mine).encode())
        time.sleep(0.5)  # two that start together both write; the last one has it
        said = self.objects.read(".driver") or b"{}"
        if json.loads(said).get("owner") != mine["owner"]:
            raise _busy(self.objects.url, _who(said))
        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.objects.remove([".driver"], patience_s=DRIVER_RENEWS_S)

    def siblings(self) -> list[str]:
        found = Objects(self.place).folders()
        return [name for name in found if name != self.sweep and not name.startswith((".", "_"))]

    @contextmanager
    def at_work(self, trial: Trial, held: Lease, follow: tuple[Path, ...]) -> Iterator[None]:
        from sweeps.storage.uploads import ORPHAN_S, Uploads, pull_checkpoint

        if held.orphan:
            time.sleep(ORPHAN_S)
        folder = self.root / trial.trial_id
        pull_checkpoint(self.objects, folder, trial)
        with Uploads(self.objects, self.root, trial.trial_id, held, follow):
            yield
        if (folder / "result.json").exists():
            shutil.rmtree(folder)  # all of it is in the store

    def join(self, trial: Trial, checkpoint: str | None) -> None:
        from sweeps.storage.uploads import pull_checkpoint

        folder = self.root / trial.trial_id
        if checkpoint is None:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        else:
            pull_checkpoint(self.objects, folder, trial, wanted=checkpoint)

    def worked_on_here(self) -> list[Path]:
        folder = self.work / self.sweep
        return [folder] if folder.is_dir() else []

    # ---- data ----------------------------------------------------------------------------------

    def share_data(self, folder: Path) -> str:
        manifest = (folder / "manifest.json").read_bytes()
        shared = f"{folder.name}-{hashlib.sha256(manifest).hexdigest()[:12]}"
        there = Objects(f"{self.place}/_data/{shared}")
        if there.read("manifest.json") != manifest:
            files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
            for path in files:
                there.upload(path, path.relative_to(folder).as_posix())
            there.write("manifest.json", manifest)  # last: with it the folder counts
        link = self.data_root / shared
        if not link.exists():
            self.data_root.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                link.symlink_to(folder.absolute())
        return shared

    def data_dir(self, shared: str) -> Path:
        folder = self.data_root / shared
        self.data_root.mkdir(parents=True, exist_ok=True)
        with (self.data_root / f".{shared}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # one download for all trials of this node
            if not (folder / "manifest.json").is_file():
                self._download(Objects(f"{self.place}/_data/{shared}"), folder)
        return folder

    def _download(self, there: Objects, folder: Path) -> None:
        if folder.is_symlink():  # to a folder that was prepared here and is gone
            folder.unlink()
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in there.listing():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            there.download(name, partial / name)
        if not (partial / "manifest.json").is_file():
            raise Unreachable(f"{there.url}: the prepared data is not there, or not whole")
        partial.rename(folder)


def work_folder(place: str) -> Path:
    """Where this node keeps what it works on for a place; the same for every attempt."""
    mark = hashlib.sha256(place.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"parcae-work-{os.getuid()}-{mark}"


def _this_process() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _who(lock: bytes) -> str:
    try:
        return json.loads(lock)["who"]
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _busy(where: str, who: str) -> UserError:
    return UserError(
        f"{where}: another `parcae run` is at work here ({who}); wait for it, or look with "
        f"`parcae status {where}`."
    )
