"""From trunk to branch: a branch starts once its trunk has left it a checkpoint.

The trainer keeps the checkpoints at the steps where branches leave (`Execution.keep_steps`); beside
it, `HandOver` makes each one the first checkpoint of its branch, whose own worker then does what
every worker does: it goes on from the newest. What a trunk lost with its worker, it makes again.
A trunk that ended without leaving a checkpoint (it diverged, failed, or its result is of another
sweep) leaves its branches to run from step 0: they come to the same result and cost more.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from parcae_core.data.io import Locked, file_lock
from parcae_core.trial import Trial
from sweeps.reports import ENDED, FINISHED, StateReport
from sweeps.storage.base import Lease, Polling
from sweeps.store import Store

LOOK_EVERY_S = 0.2  # for a checkpoint to hand over
ASK_EVERY_S = 1.0  # whether a branch may start


class Waiting:
    """Trials that nobody has started, in order; a branch also waits for its first checkpoint.

    Args:
        say: told of branches that will run from step 0.
    """

    def __init__(
        self, store: Store, trials: Iterable[Trial], say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.store, self.storage, self.say = store, Polling(store.storage), say
        self.trials = list(trials)
        self._free: set[str] = set()
        self._asked_at: float | None = None  # None: something has ended since

    def __bool__(self) -> bool:
        return bool(self.trials)

    def ready(self) -> Trial | None:
        """The first that may start; it stays until it is removed."""
        if self._asked_at is None or time.monotonic() - self._asked_at >= ASK_EVERY_S:
            self._ask()
        return next((t for t in self.trials if self._may_start(t)), None)

    def put_back(self, trial: Trial) -> None:
        """A trial that lost its worker is the next one."""
        self.trials.insert(0, trial)
        self._free.add(trial.trial_id)

    def give_up(self, trial: Trial) -> None:
        """A trial that lost its worker too often has no further attempt before the next `parcae run`."""

    def asked_anew(self) -> None:
        """Something has ended: what the next answer rests on is read again."""
        self._asked_at = None

    def _may_start(self, trial: Trial) -> bool:
        return trial.parent is None or trial.trial_id in self._free

    def _ask(self) -> None:
        asked = [t for t in self.trials if not self._may_start(t)]
        if asked:
            self.storage.pull(now=self._asked_at is None)
        self._asked_at = time.monotonic()
        waiting = {t.trial_id for t in self.trials}
        for trial in asked:
            assert trial.parent is not None, "it may start otherwise"
            if not needs_checkpoint(self.store, trial):
                self._free.add(trial.trial_id)
            elif trial.parent.trial_id not in waiting:
                trunk = self.store.trial(trial.parent.trial_id)
                if trunk is None or self.store.state(trunk).state in ENDED:
                    self._free.add(trial.trial_id)
                    self.say(
                        f"{trial.trial_id}: its trunk {trial.parent.trial_id} has ended and left no "
                        f"checkpoint at step {trial.parent.step}; it runs from step 0"
                    )


class HandOver:
    """Beside a trunk's training: makes the checkpoints that it keeps those that its branches begin from.

    Args:
        branches: trial_ids; none is the end of a trunk so far, whose checkpoint stays for a longer
            trial that may be planned later; None is a sweep without trunks.
    """

    def __init__(
        self, store: Store, trial: Trial, branches: Sequence[str] | None, held: Lease
    ) -> None:
        self.store, self.held = store, held
        store.storage.pull(p for b in branches or () for p in store.files(b).small)
        known = (store.trial(b) for b in branches or ())
        self.branches = [t for t in known if t is not None and needs_checkpoint(store, t)]
        steps = {b.shared_steps for b in self.branches}
        if branches is not None and not branches:
            steps.add(trial.constant_steps)
        self.keep_steps = tuple(sorted(steps))  # after these updates the trainer keeps a checkpoint
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> HandOver:
        if self.branches:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.thread.ident is not None:  # there was something to hand over
            self.thread.join()
            self._turn()

    def _repeat(self) -> None:
        while not self.over.wait(LOOK_EVERY_S):
            self._turn()

    def _turn(self) -> None:
        """Hand over what is there; what fails is tried again with the next turn."""
        for branch in list(self.branches):
            if self.held.held():
                try:
                    done = hand_over(self.store, branch)
                except OSError as error:
                    print(f"{branch.trial_id}: not handed over for now ({error})", flush=True)
                else:
                    if done:
                        self.branches.remove(branch)


def hand_over_ended(store: Store, trials: Iterable[Trial]) -> None:
    """What ended trunks have kept for branches that were planned later; of a shared folder alone, since
    in an object store nothing is kept beyond a trial's end."""
    for trial in trials:
        if trial.parent is not None and needs_checkpoint(store, trial):
            trunk = store.trial(trial.parent.trial_id)
            if trunk is not None and store.state(trunk).state in FINISHED:
                hand_over(store, trial)


def needs_checkpoint(store: Store, branch: Trial) -> bool:
    """Whether a branch has neither begun nor been given what it begins from."""
    report = store.report(branch.trial_id)
    has_one = report is not None and report.checkpoint_step > 0
    return not has_one and store.result(branch) is None


def hand_over(store: Store, branch: Trial) -> bool:
    """Give a branch the checkpoint that its trunk kept for it; False if there is none yet."""
    assert branch.parent is not None, "it begins at step 0"
    trunk, files = store.files(branch.parent.trial_id), store.files(branch.trial_id)
    kept = trunk.branches / f"step-{branch.parent.step:09d}"
    if not kept.is_dir():
        return False
    from parcae_core.checkpoints.native import DamagedCheckpoint  # it loads torch
    from parcae_core.training.branches import begin_branch

    files.folder.mkdir(parents=True, exist_ok=True)
    store.storage.pull(files.small)  # it may have begun elsewhere since this worker started
    with suppress(Locked), file_lock(files.worker):  # else it is at work without us
        try:
            begun = next(files.checkpoints.glob("step-*"), None)
            if begun is None:
                begun = begin_branch(trunk.folder, branch, files.folder)
            if needs_checkpoint(store, branch):  # else it is further than we are
                _publish(store, branch, begun)
        except DamagedCheckpoint as damage:
            print(f"{branch.trial_id}: runs from step 0, {damage}", flush=True)
    shutil.rmtree(kept)
    return True


def _publish(store: Store, branch: Trial, begun: Path) -> None:
    """Let the other nodes see it: the index last of the checkpoint, the state last of all."""
    files = store.files(branch.trial_id)
    index_last = sorted(begun.iterdir(), key=lambda p: p.suffix == ".json")
    store.storage.push(files.metrics, *index_last)
    if store.storage.objects is not None:  # from there it comes to the node that runs the branch
        shutil.rmtree(files.checkpoints)
    report = store.report(branch.trial_id) or StateReport(state="planned")
    step = branch.shared_steps
    replace(report, state="planned", step=step, checkpoint_step=step).write(files.state)
    store.storage.push(files.state)
