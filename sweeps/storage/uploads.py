"""A trial's folder on a node and its copy in an object store, kept up beside training.

Two threads of the worker do it: one looks at the lease and sends the small files (state, result),
the other the checkpoints. The trainer never waits for them: a checkpoint is taken by hard links,
which cost nothing, and sent from there while the trainer goes on and drops its old ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

from parcae_core.checkpoints.native import DamagedCheckpoint, newest_checkpoint, read_checkpoint
from parcae_core.trial import Trial
from sweeps.storage.files import write_atomic
from sweeps.storage.lease import Lease, LeaseLost
from sweeps.storage.objects import Objects

FOLLOW_EVERY_S = 1.0  # the lease, the stop file, small files that changed
LOOK_EVERY_S = 0.2  # for a new checkpoint
KEEP = 2  # checkpoints in the store, as in the folder
# Of a request during training: what fails is tried again with the next turn, or overtaken by it
PATIENCE_S = 30.0
# At the end, when nothing is left to be done but to hand over what was trained; a checkpoint alone
# has to be there within the grace of a stop (sweeps.cli.jobs)
FINAL_PATIENCE_S, STOP_PATIENCE_S = 900.0, 100.0
# A worker on a lost node looks at the lease every second and stops; until then it may still write
ORPHAN_S = 3.0
INDEX = "checkpoint.json"
_SMALL = ("result.json", "error.txt", "state.json")  # the state last: it says what the others show


class Uploads:
    """Publishes what a running trial leaves in its folder.

    Leaving the block means handing over: it returns once the store holds everything.

    Raises:
        Unreachable: on leaving, if the store would not take it; what is here stays here.
        LeaseLost: on leaving, if a later attempt has the trial.
    """

    def __init__(
        self,
        objects: Objects,
        root: Path,
        trial_id: str,
        held: Lease,
        follow: tuple[Path, ...] = (),
    ) -> None:
        self.objects, self.root, self.held = objects, root, held
        self.folder, self.follow = root / trial_id, follow
        self.outgoing = self.folder / ".outgoing"
        self.sent: dict[str, tuple[int, int]] = {}
        self.there: set[str] = set()  # names of whole checkpoints in the store
        self.over, self.lost = threading.Event(), threading.Event()
        self.failing: str | None = None  # said once, not at every turn

    def __enter__(self) -> Uploads:
        shutil.rmtree(self.outgoing, ignore_errors=True)
        self.there = set(checkpoints_in(self.objects, self.folder.name))
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
                raise LeaseLost(f"{self.folder.name}: a later attempt has taken over")
            return
        if error is None:
            ended = (self.folder / "result.json").exists()
            self._hand_over(FINAL_PATIENCE_S if ended else STOP_PATIENCE_S)
            return
        with contextlib.suppress(OSError):  # the first failure is the one to hear about
            self._hand_over(PATIENCE_S)

    def _repeat(self, turn, every_s: float) -> None:
        while not self.over.wait(every_s) and not self.lost.is_set():
            try:
                turn(PATIENCE_S)
            except LeaseLost:
                return  # the trainer hears of it from the lease that is now here
            except OSError as error:
                if self.failing is None:
                    print(f"{self.folder.name}: not published for now ({error})", flush=True)
                self.failing = str(error)
            else:
                self.failing = None

    def _hand_over(self, patience_s: float) -> None:
        self._require_ours(patience_s)
        if (self.folder / "result.json").exists():
            self._send("result.json", patience_s)
        self._send_checkpoint(patience_s)
        self._send("metrics.jsonl", patience_s)
        for path in sorted((self.folder / "wandb").rglob("*")):
            if path.is_file() and not path.is_symlink():
                self._send(path.relative_to(self.folder).as_posix(), patience_s)
        for name in _SMALL:
            self._send(name, patience_s)
        self.objects.write(
            f"{self.folder.name}/lease.json",
            json.dumps(self.held.said | {"released": True}).encode(),
            patience_s,
        )

    # ---- small files ---------------------------------------------------------------------------

    def _follow(self, patience_s: float) -> None:
        self._require_ours(patience_s)
        for path in self.follow:
            if self.objects.read(path.relative_to(self.root).as_posix(), patience_s) is not None:
                path.touch()
        for name in _SMALL:
            self._send(name, patience_s)

    def _require_ours(self, patience_s: float) -> None:
        """Look at the lease in the store; a new one is put here, where the trainer finds it."""
        said = self.objects.read(f"{self.folder.name}/lease.json", patience_s)
        if said is not None and json.loads(said).get("owner") != self.held.owner:
            self.lost.set()
            write_atomic(self.folder / "lease.json", said.decode())
            raise LeaseLost(f"{self.folder.name}: a later attempt has taken over")

    def _send(self, name: str, patience_s: float) -> None:
        """Send a file unless this version of it has been sent."""
        path = self.folder / name
        try:
            stat = path.stat()
            content = path.read_bytes()
        except FileNotFoundError:
            return
        version = (stat.st_mtime_ns, stat.st_size)
        if self.sent.get(name) != version:
            if name == "metrics.jsonl":
                content = content[: content.rfind(b"\n") + 1]  # whole lines: it is being written
            self.objects.write(f"{self.folder.name}/{name}", content, patience_s)
            self.sent[name] = version

    # ---- checkpoints ---------------------------------------------------------------------------

    def _send_checkpoint(self, patience_s: float) -> None:
        """Send the newest checkpoint, if it is not there, and let the store forget the older."""
        taken = self._take()
        if taken is None:
            return
        try:
            self._require_ours(patience_s)
            self._send("metrics.jsonl", patience_s)  # first: it has to reach to the checkpoint
            prefix = f"{self.folder.name}/checkpoints/{taken.name}"
            for path in sorted(taken.iterdir(), key=lambda p: p.name == INDEX):  # the index last
                self.objects.upload(path, f"{prefix}/{path.name}", patience_s)
            self.there.add(taken.name)
        finally:
            shutil.rmtree(self.outgoing, ignore_errors=True)
        for name in sorted(self.there)[:-KEEP]:
            remove_checkpoint(self.objects, self.folder.name, name, patience_s)
            self.there.discard(name)

    def _take(self) -> Path | None:
        """The newest checkpoint that the store lacks, by hard links: a copy that costs nothing."""
        found = sorted((self.folder / "checkpoints").glob("step-*"))
        if not found or found[-1].name in self.there:
            return None
        taken = self.outgoing / found[-1].name
        shutil.rmtree(self.outgoing, ignore_errors=True)
        taken.mkdir(parents=True)
        try:
            for path in found[-1].iterdir():
                os.link(path, taken / path.name)
        except FileNotFoundError:  # dropped while we looked, so there is a newer one
            return None
        return taken if (taken / INDEX).exists() else None


def checkpoints_in(objects: Objects, trial_id: str) -> list[str]:
    """Names of a trial's whole checkpoints in the store, by rising step."""
    listed = objects.listing(f"{trial_id}/checkpoints")
    return sorted(n.split("/")[-2] for n in listed if n.endswith(f"/{INDEX}"))


def remove_checkpoint(objects: Objects, trial_id: str, name: str, patience_s: float) -> None:
    """Its index first: from then on it does not count."""
    prefix = f"{trial_id}/checkpoints/{name}"
    rest = [n for n in objects.listing(prefix) if not n.endswith(f"/{INDEX}")]
    objects.remove([f"{prefix}/{INDEX}", *rest], patience_s)


def pull_checkpoint(
    objects: Objects, folder: Path, trial: Trial, *, wanted: str | None = None
) -> None:
    """Bring a trial's newest good checkpoint, and its metrics, to this node if it is not here.

    Args:
        wanted: only this one, which is on its way to the store; waits for it.
    """
    local = newest_checkpoint(folder / "checkpoints", trial)
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
            _bring(objects, folder / "checkpoints", trial, name)
        except (DamagedCheckpoint, FileNotFoundError) as damage:
            print(f"{objects.url}: {trial.trial_id} {name} is damaged ({damage})", flush=True)
            remove_checkpoint(objects, trial.trial_id, name, PATIENCE_S)
            continue
        metrics = objects.read(f"{trial.trial_id}/metrics.jsonl")
        if metrics is not None:
            write_atomic(folder / "metrics.jsonl", metrics.decode())
        return


def _bring(objects: Objects, checkpoints: Path, trial: Trial, name: str) -> None:
    partial = checkpoints / f".writing-{name}"  # the trainer removes it if we are cut short
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for there in objects.listing(f"{trial.trial_id}/checkpoints/{name}"):
        objects.download(there, partial / there.rpartition("/")[2])
    read_checkpoint(partial)  # or DamagedCheckpoint
    shutil.rmtree(checkpoints / name, ignore_errors=True)
    partial.rename(checkpoints / name)
