"""An object store, and a folder of this node for what is being worked on.

The folder here is a working copy: of a driver or a reader a view of the small files, removed
afterwards; of a worker the folders of its trials.

What reaches an object store, and in which order, so that whatever is there is whole:
    small files     one object each, replaced at once
    a checkpoint    its checkpoint.json last, and first to go: without it the others do not count
    the result      when it is written, again and again until the store has taken it
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from parcae_core.data.io import write_synced
from parcae_core.errors import UserError
from sweeps.storage.base import busy, this_process
from sweeps.storage.files import DECISIONS, SCORES, SMALL, TrialFiles, parsed
from sweeps.storage.objects import Objects, Retrying
from sweeps.storage.tempdir import OwnedFolder, private_folder
from sweeps.waiting import say

AT_ONCE = 8  # requests side by side
# An object store has no lock that ends with a process, so the driver renews its own; one that was
# not renewed for this long belongs to a dead driver
DRIVER_RENEWS_S, DRIVER_GONE_S = 4.0, 16.0


class ObjectStorage:
    """`sweeps.storage.base.Storage` of a sweep below a URL.

    Args:
        working: for a worker, which keeps its trials' folders here from attempt to attempt.
    """

    def __init__(self, out: str, sweep: str, *, working: bool) -> None:
        scheme, _, rest = out.partition(":/")
        if not rest.strip("/"):
            raise UserError(f"{out}: names no bucket; give one, like {scheme}://bucket/runs.")
        self.place = f"{scheme}://{rest.strip('/')}"
        self.objects = Retrying(Objects(f"{self.place}/{sweep}"))
        work = work_folder(self.place)
        if working:
            private_folder(work)
        self.data_root, self.work_root = work / "_data", work / sweep
        self.root = self.work_root
        if not working:
            self._view = OwnedFolder("parcae-view-")
            self.root = self._view.path / sweep
        self._seen: dict[str, str] = {}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    # ---- the verbs -----------------------------------------------------------------------------

    def list(self, below: str = "") -> dict[str, str]:
        return self.objects.list(below)

    def pull(self, paths: Iterable[Path] | None = None) -> None:
        if paths is None:
            return self._pull_small()
        paths = list(paths)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = pool.map(self.objects.pull, map(self._name, paths))
            for path, content in zip(paths, contents, strict=True):
                if content is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_synced(path, content)
                # A result that is only here is one that the store would not take: it still counts
                elif path != TrialFiles(path.parent).result:
                    path.unlink(missing_ok=True)
        return None

    def _pull_small(self) -> None:
        listed = {name: mark for name, mark in self.list().items() if _is_small(name)}
        changed = [name for name, mark in listed.items() if self._seen.get(name) != mark]
        self.pull(self.root / name for name in changed)
        for name in self._seen.keys() - listed.keys():
            (self.root / name).unlink(missing_ok=True)
        self._seen = listed

    def push(self, *paths: Path) -> None:
        for path in paths:
            self.objects.push(self._name(path), path)

    def delete(self, *paths: Path) -> None:
        for path in paths:
            self.objects.delete(self._name(path))
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """An object that is renewed: one that stays as it is belongs to a driver that is dead.

        A driver that was held up for so long (suspended, cut off) finds another's and is stopped as by
        Ctrl-C: its trials write a checkpoint, and the other's workers take them over.
        """
        mine = {"owner": uuid.uuid4().hex, "who": this_process()}
        began, before = time.monotonic(), self.objects.pull(".driver")
        while before is not None and time.monotonic() - began < DRIVER_GONE_S:
            time.sleep(DRIVER_RENEWS_S / 4)
            now = self.objects.pull(".driver")
            if now is not None and now != before:
                raise busy(self.objects.url, _holder(now))
            before = now
        self.objects.push(".driver", json.dumps(mine).encode())
        time.sleep(0.5)  # two that start together both write; the last one has it
        found = self.objects.pull(".driver") or b"{}"
        if parsed(found).get("owner") != mine["owner"]:
            raise busy(self.objects.url, _holder(found))
        hasty, over = Retrying(self.objects.objects, DRIVER_RENEWS_S), threading.Event()

        def ours() -> bool:
            found = hasty.pull(".driver")
            return found is None or parsed(found).get("owner") == mine["owner"]

        def renew() -> None:
            beat = 0
            while not over.wait(DRIVER_RENEWS_S):
                beat += 1
                with suppress(OSError):
                    if not ours():
                        say(
                            f"{self.objects.url}: another `parcae run` took it over, since this one was "
                            f"not heard for {DRIVER_GONE_S:.0f} s; this one stops"
                        )
                        return os.kill(os.getpid(), signal.SIGINT)
                    hasty.push(".driver", json.dumps(mine | {"beat": beat}).encode())

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                if ours():
                    hasty.delete(".driver")


def _is_small(name: str) -> bool:
    """Whether a view of the sweep holds the file."""
    folder, _, file = name.rpartition("/")
    return file in ((*SMALL, SCORES) if folder else ("sweep.json", "spec.yaml", DECISIONS))


def work_folder(place: str) -> Path:
    """Where this node keeps what it works on for a place; the same for every attempt."""
    mark = hashlib.sha256(place.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"parcae-work-{os.getuid()}-{mark}"


def _holder(lock: bytes) -> str:
    return str(parsed(lock).get("who", "unknown"))[:200]
