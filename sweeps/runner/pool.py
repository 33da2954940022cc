"""`parcae run --no-ray`: the trials of a sweep as plain processes on this machine.

For pilots, single machines and rented ones without Ray, which is never imported here. The store is
the same, and so is every rule about it: a worker of the pool runs `attempt` as a worker of Ray does.
A process stays for the next trial, since starting one costs seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from parcae_core.cpus import usable_cpus
from parcae_core.trial import Trial
from sweeps.branches import Waiting
from sweeps.reports import ENDED
from sweeps.runner.cluster.placement import gpus_here, side_by_side
from sweeps.runner.display import Display, label
from sweeps.runner.losses import Loss, Losses, loss_of_process
from sweeps.runner.process_main import die_with
from sweeps.runner.signals import stop_on_signals
from sweeps.runner.trainable import Job, attempt
from sweeps.store import Store

POLL_S = 1.0


@dataclass(eq=False, slots=True)
class _Worker:
    """A process and the trial that it has in hand."""

    process: BaseProcess
    pipe: Connection
    gpus: tuple[int, ...]  # that it sees; its share of one, if the trials take fractions
    trial: Trial | None = None


@dataclass(slots=True)
class _Machine:
    """Cores and GPUs that are free."""

    cpus: float
    gpus: dict[int, float] = field(default_factory=dict)  # number -> what is free of it

    def take(self, trial: Trial) -> tuple[int, ...] | None:
        """Reserve what a trial needs; its GPUs, or None if they are not free now."""
        wanted = trial.resources
        each = min(wanted.gpus, 1.0)
        n_gpus = 0 if not wanted.gpus else max(1, int(wanted.gpus))
        free = [i for i, share in self.gpus.items() if share >= each - 1e-9][:n_gpus]
        if wanted.cpus > self.cpus + 1e-9 or len(free) < n_gpus:
            return None
        self._add(-wanted.cpus, free, -each)
        return tuple(free)

    def give_back(self, trial: Trial, gpus: tuple[int, ...]) -> None:
        self._add(trial.resources.cpus, gpus, min(trial.resources.gpus, 1.0))

    def _add(self, cpus: float, gpus: Sequence[int], each: float) -> None:
        self.cpus += cpus
        for i in gpus:
            self.gpus[i] += each


def run_pool(
    job: Job,
    trials: Sequence[Trial],
    store: Store,
    waits: Callable[..., Waiting] = Waiting,
) -> bool:
    """Run the trials in the given order, as many at a time as the machine holds.

    A sweep of several seeds runs one after the other, so that one that is stopped early, or looked at
    while it runs, has whole grids.

    Args:
        waits: what holds the trials until they start; see `sweeps.runner.adaptive`.

    Returns:
        Whether a signal ended it.
    """
    display = Display(store, trials)
    machine = _Machine(
        job.options.cpus or usable_cpus(), dict.fromkeys(range(gpus_here(trials)), 1.0)
    )
    if waits is not Waiting:
        waits = partial(waits, slots=partial(side_by_side, trials, machine.cpus, len(machine.gpus)))
        display.open_ended = True
    # an adaptive sweep chooses its own order
    waiting = waits(store, sorted(trials, key=lambda t: t.seed), display.say)
    pool = _Pool(job, waiting, machine, Losses(store, trials, job.options.lost_workers), display)
    try:
        with (
            display,
            stop_on_signals(partial(store.request_stop, job.session), pool.end) as stopped,
        ):
            pool.run(stopped)
    finally:
        pool.end()
        store.forget_stop(job.session)
    return bool(stopped)


@dataclass(eq=False, slots=True)
class _Pool:
    """Workers, what waits for one, and what has been lost."""

    job: Job
    waiting: Waiting
    machine: _Machine
    losses: Losses
    display: Display
    workers: list[_Worker] = field(default_factory=list)

    def run(self, stopped: Sequence[int]) -> None:
        while (self.waiting and not stopped) or self._busy():
            if not stopped:
                self._start_what_fits()
                if self.waiting and not self._busy():
                    return self._say_stuck()
            for worker in self._heard():
                if worker in self.workers:  # else a signal has ended it: nothing is lost
                    self._end_of_trial(worker)
            self.display.show(w.trial.trial_id for w in self._busy())

    def end(self) -> None:
        """End every worker at once; a trial in hand goes on from its last checkpoint next time."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
        self.workers.clear()

    def _busy(self) -> list[_Worker]:
        return [w for w in self.workers if w.trial is not None]

    def _start_what_fits(self) -> None:
        while (trial := self.waiting.ready()) and (gpus := self.machine.take(trial)) is not None:
            self.waiting.trials.remove(trial)
            idle = (w for w in self.workers if w.trial is None and w.gpus == gpus)
            worker = next(idle, None) or self._start_worker(gpus)
            worker.trial = trial
            worker.pipe.send(trial.trial_id)

    def _start_worker(self, gpus: tuple[int, ...]) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.job, theirs, gpus), daemon=False)
        # a process keeps this mask: Ctrl-C, which is for us, would else end it while it still imports
        resource_tracker.ensure_running()  # whose own start would lift the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.workers.append(_Worker(process, ours, gpus))
        return self.workers[-1]

    def _heard(self) -> list[_Worker]:
        """Workers that are done with their trial, or gone."""
        busy = {w.pipe: w for w in self._busy()}
        return [busy[pipe] for pipe in wait(list(busy), timeout=POLL_S)]

    def _end_of_trial(self, worker: _Worker) -> None:
        trial, worker.trial = worker.trial, None
        self.machine.give_back(trial, worker.gpus)
        try:
            said = worker.pipe.recv()
            problem = None if said is None else Loss(said)
        except (EOFError, OSError):
            worker.process.join()
            if worker not in self.workers:
                return
            problem = loss_of_process(worker.process.exitcode)
        if problem is not None:
            self.workers = [w for w in self.workers if w is not worker]
            worker.process.kill()
            worker.process.join()
        self.display.storage.pull(now=True)
        self.waiting.asked_anew()
        self._tell(trial, problem)

    def _tell(self, trial: Trial, problem: Loss | None) -> None:
        state = self.display.store.state(trial).state
        if problem is not None and state not in ENDED:
            self.display.say(f"{label(trial)}: {self.losses.record(trial, problem)}")
            if self.losses.counted[trial.trial_id] <= self.losses.allowed:
                self.waiting.put_back(trial)
                return
            self.waiting.give_up(trial)
        self.display.end(trial, state)

    def _say_stuck(self) -> None:
        for trial in self.waiting.trials:
            trunk = trial.parent and trial.parent.trial_id
            self.display.say(f"{label(trial)}: not started; its trunk {trunk} was given up")


def _work(job: Job, pipe: Connection, gpus: tuple[int, ...]) -> None:
    """What a worker does: attempts, one after the other, until the pool is gone."""
    os.setsid()  # Ctrl-C is for the parent, which asks us to stop through the store
    die_with(multiprocessing.parent_process().pid)
    if gpus:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = given.split(",") if given else None
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] if names else str(i) for i in gpus)
    while True:
        try:
            trial_id = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            attempt(job, trial_id, lambda outcome: None)
        except Exception as error:  # noqa: BLE001 - what another attempt elsewhere may cure
            traceback.print_exc(file=sys.stderr)
            pipe.send(f"{type(error).__name__}: {error}")
            return
        pipe.send(None)
