"""A trial's folder on a node and its copy in an object store, kept up beside training.

Two threads of the worker do it: one looks at the lease and sends the small files (state, result),
the other the checkpoints. The trainer never waits for them: a checkpoint is taken by hard links,
which cost nothing, and sent from there while the trainer goes on and drops its old ones.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parcae_core.data.io import write_synced
from parcae_core.trial import Trial
from sweeps.storage.base import Lease, LeaseLost, Storage
from sweeps.storage.files import TrialFiles, parsed
from sweeps.storage.objects import Retrying, Unreachable

FOLLOW_EVERY_S = 1.0  # the lease, the stop file, small files that changed
LOOK_EVERY_S = 0.2  # for a new checkpoint
KEEP = 2  # checkpoints in the store, as in the folder
# Of a request during training: what fails is tried again with the next turn, or overtaken by it
PATIENCE_S = 30.0
# At the end, when nothing is left to be done but to hand over what was trained; a checkpoint alone
# has to be there within the grace of a stop (sweeps.runner.cluster.jobs)
FINAL_PATIENCE_S, STOP_PATIENCE_S = 900.0, 100.0
# A worker on a lost node looks at the lease every second and stops; until then it may still write
ORPHAN_S = 3.0
INDEX = "checkpoint.json"


@contextmanager
def pushing(
    storage: Storage, trial: Trial, held: Lease, follow: tuple[Path, ...]
) -> Iterator[None]:
    """While a trial runs in its folder here, push what it leaves there, and pull the files to follow."""
    if storage.objects is None:
        yield
        return
    if held.orphan:
        time.sleep(ORPHAN_S)
    files = TrialFiles(storage.root / trial.trial_id)
    pull_checkpoint(storage, trial)
    with Uploads(storage.objects, files, held, follow):
        yield
    if files.result.exists():
        shutil.rmtree(files.folder)  # all of it is in the store


class Uploads:
    """Pushes what a running trial leaves in its folder.

    Leaving the block means handing over: it returns once the store holds everything.

    Raises:
        Unreachable: on leaving, if the store would not take it; what is here stays here.
        LeaseLost: on leaving, if a later attempt has the trial.
    """

    def __init__(
        self, objects: Retrying, files: TrialFiles, held: Lease, follow: tuple[Path, ...] = ()
    ) -> None:
        self.plain, self.files, self.held, self.follow = objects.objects, files, held, follow
        self.trial_id = files.folder.name
        self.sent: dict[str, tuple[int, int]] = {}
        self.there = set(checkpoints_in(objects, self.trial_id))  # whole ones, in the store
        self.over, self.lost = threading.Event(), threading.Event()
        self.failing: str | None = None  # said once, not at every turn

    def __enter__(self) -> Uploads:
        shutil.rmtree(self.files.outgoing, ignore_errors=True)
        turns = ((self._follow, FOLLOW_EVERY_S), (self._send_checkpoint, LOOK_EVERY_S))
        self.threads = [
            threading.Thread(target=self._repeat, args=turn, daemon=True) for turn in turns
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()
        if self.lost.is_set() or isinstance(error, LeaseLost):
            if error is None:
                raise LeaseLost(f"{self.trial_id}: a later attempt has taken over")
            return
        if error is None:
            ended = self.files.result.exists()
            self._hand_over(FINAL_PATIENCE_S if ended else STOP_PATIENCE_S)
            return
        with suppress(OSError):  # the first failure is the one to hear about
            self._hand_over(PATIENCE_S)

    def _repeat(self, turn: Callable[[Retrying], None], every_s: float) -> None:
        while not self.over.wait(every_s) and not self.lost.is_set():
            try:
                turn(Retrying(self.plain, PATIENCE_S))
            except LeaseLost:
                return  # the trainer finds the lease that is now here
            except OSError as error:
                if self.failing is None:
                    print(f"{self.trial_id}: not pushed for now ({error})", flush=True)
                self.failing = str(error)
            else:
                self.failing = None

    def _hand_over(self, patience_s: float) -> None:
        objects, files = Retrying(self.plain, patience_s), self.files
        self._require_ours(objects)
        self._send(objects, files.result)
        self._send_checkpoint(objects)
        self._send(objects, files.metrics)
        runs = (p for p in sorted(files.wandb.rglob("*")) if p.is_file() and not p.is_symlink())
        self._send(objects, *runs, *self._small)
        released = json.dumps(self.held.content | {"released": True}).encode()
        objects.push(self._name(files.lease), released)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.files.folder.parent).as_posix()

    # ---- small files ---------------------------------------------------------------------------

    @property
    def _small(self) -> tuple[Path, ...]:
        """The state last: it says what the others show."""
        return self.files.result, self.files.error, self.files.state

    def _follow(self, objects: Retrying) -> None:
        self._require_ours(objects)
        for path in self.follow:
            if objects.pull(self._name(path)) is not None:
                path.touch()
        self._send(objects, *self._small)

    def _require_ours(self, objects: Retrying) -> None:
        """Look at the lease in the store; a new one is put here, where the trainer finds it."""
        lease = objects.pull(self._name(self.files.lease))
        if lease is None:
            return
        # a damaged one is nobody's: the lease is not lost to it
        if parsed(lease).get("owner", self.held.owner) != self.held.owner:
            self.lost.set()
            write_synced(self.files.lease, lease)
            raise LeaseLost(f"{self.trial_id}: a later attempt has taken over")

    def _send(self, objects: Retrying, *paths: Path) -> None:
        """Push files, except those of which this version has been sent."""
        for path in paths:
            try:
                stat, content = path.stat(), path.read_bytes()
            except FileNotFoundError:
                continue
            name, version = self._name(path), (stat.st_mtime_ns, stat.st_size)
            if self.sent.get(name) == version:
                continue
            if path == self.files.metrics:
                content = content[: content.rfind(b"\n") + 1]  # whole lines: it is being written
            objects.push(name, content)
            self.sent[name] = version

    # ---- checkpoints ---------------------------------------------------------------------------

    def _send_checkpoint(self, objects: Retrying) -> None:
        """Push the newest checkpoint, if it is not there, and let the store forget the older."""
        taken = self._take()
        if taken is None:
            return
        try:
            self._require_ours(objects)
            self._send(objects, self.files.metrics)  # first: it has to reach to the checkpoint
            prefix = self._name(self.files.checkpoints / taken.name)
            for path in sorted(taken.iterdir(), key=lambda p: p.name == INDEX):  # the index last
                objects.push(f"{prefix}/{path.name}", path)
            self.there.add(taken.name)
        finally:
            shutil.rmtree(self.files.outgoing, ignore_errors=True)
        for name in sorted(self.there)[:-KEEP]:
            delete_checkpoint(objects, self.trial_id, name)
            self.there.discard(name)

    def _take(self) -> Path | None:
        """The newest checkpoint that the store lacks, by hard links: a copy that costs nothing."""
        found = sorted(self.files.checkpoints.glob("step-*"))
        if not found or found[-1].name in self.there:
            return None
        taken = self.files.outgoing / found[-1].name
        shutil.rmtree(self.files.outgoing, ignore_errors=True)
        taken.mkdir(parents=True)
        try:
            for path in found[-1].iterdir():
                os.link(path, taken / path.name)
        except FileNotFoundError:  # dropped while we looked, so there is a newer one
            return None
        return taken if (taken / INDEX).exists() else None


def checkpoints_in(objects: Retrying, trial_id: str) -> list[str]:
    """Names of a trial's whole checkpoints in the store, by rising step."""
    listed = objects.list(f"{trial_id}/checkpoints")
    return sorted(n.split("/")[-2] for n in listed if n.endswith(f"/{INDEX}"))


def delete_checkpoint(objects: Retrying, trial_id: str, name: str) -> None:
    """Its index first: from then on it does not count."""
    prefix = f"{trial_id}/checkpoints/{name}"
    for found in sorted(objects.list(prefix), key=lambda n: not n.endswith(f"/{INDEX}")):
        objects.delete(found)


def pull_checkpoint(storage: Storage, trial: Trial, *, wanted: str | None = None) -> None:
    """Bring a trial's newest good checkpoint, and its metrics, to this node if it is not here.

    Args:
        wanted: only this one, which is on its way to the store; waits for it. "" is a fresh start.

    Raises:
        Unreachable: the wanted one did not come, or came damaged; training from another step than the
            processes that wait for this one would fail for good.
    """
    objects, files = storage.objects, TrialFiles(storage.root / trial.trial_id)
    if objects is None:
        return
    if wanted == "":
        shutil.rmtree(files.checkpoints, ignore_errors=True)
        return
    from parcae_core.checkpoints.native import DamagedCheckpoint, newest_checkpoint  # loads torch

    local = newest_checkpoint(files.checkpoints, trial)
    here = "" if local is None else local.path.name
    if here == wanted:
        return
    deadline = time.monotonic() + PATIENCE_S
    names = checkpoints_in(objects, trial.trial_id)
    while wanted is not None and wanted not in names and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
        names = checkpoints_in(objects, trial.trial_id)
    for name in reversed([n for n in names if wanted in (None, n)]):
        if wanted is None and name <= here:
            return
        try:
            _pull(objects, files.checkpoints, trial, name)
        except (DamagedCheckpoint, FileNotFoundError) as damage:
            print(f"{objects.url}: {trial.trial_id} {name} is damaged ({damage})", flush=True)
            delete_checkpoint(Retrying(objects.objects, PATIENCE_S), trial.trial_id, name)
            continue
        metrics = objects.pull(f"{trial.trial_id}/{files.metrics.name}")
        if metrics is not None:
            write_synced(files.metrics, metrics)
        return
    if wanted is not None:
        raise Unreachable(
            f"{objects.url}: {trial.trial_id} has no whole checkpoint {wanted} after {PATIENCE_S:.0f} s"
        )


def _pull(objects: Retrying, checkpoints: Path, trial: Trial, name: str) -> None:
    from parcae_core.checkpoints.native import read_checkpoint

    partial = checkpoints / f".writing-{name}"  # the trainer removes it if we are cut short
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for found in objects.list(f"{trial.trial_id}/checkpoints/{name}"):
        objects.pull_file(found, partial / found.rpartition("/")[2])
    read_checkpoint(partial)  # or DamagedCheckpoint
    shutil.rmtree(checkpoints / name, ignore_errors=True)
    partial.rename(checkpoints / name)
