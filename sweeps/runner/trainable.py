"""What runs on a worker: one trial from its folder to its result. Ray Tune calls `run_trial`.

Tune only schedules. The trial is read from trial.json, checkpoints are the trainer's own, progress
is state.json and the outcome result.json. Tune hears one word at the end, and the loss at a few steps
where a scheduler wants it (`sweeps.runner.rungs`): its `report` waits for the driver, and a worker whose
driver or raylet is gone would wait in it for ever, holding the folder.

How an attempt ends:
    done, diverged, stopped early       result.json; never run again
    our own exception   state "failed" with the reason; not retried, since it would fail again
    a full disk or memory, a dead process, worker, driver or node, a lost lease     raised, or simply gone:
                        Tune retries, and the next attempt goes on from the newest good checkpoint
    asked to stop       a checkpoint; the trial stays planned
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from parcae_core.data.io import write_synced
from parcae_core.result import Execution, Interrupted, TrainResult
from parcae_core.trial import Trial
from sweeps.branches import HandOver
from sweeps.reports import ENDED, StateReport
from sweeps.runner.errors import environment, process_ending, reason_of
from sweeps.runner.losses import LOST_WORKERS_ALLOWED
from sweeps.runner.rungs import Rungs
from sweeps.storage.base import Lease, LeaseLost, lease
from sweeps.storage.data import pull_data
from sweeps.storage.files import TrialFiles, sealed, write_json
from sweeps.storage.uploads import pull_checkpoint, pushing
from sweeps.store import HEARTBEAT_S, Store
from sweeps.tracking.live import Live
from sweeps.tracking.trial_run import mirror

Train = Callable[..., TrainResult]
ASK_EVERY_S = 1.0  # how often the stop file and the lease are looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to run; none of it changes what is trained."""

    cpus: int | None = None  # of a private cluster; None: all of this machine's
    address: str | None = None  # of a running cluster; None: a private one
    can_add: dict[str, float] | None = None  # resources of the largest node the cluster may add
    checkpoint_every_s: float = 120.0
    lost_workers: int = LOST_WORKERS_ALLOWED  # without progress, per trial
    lease_wait_s: float = 60.0
    wandb_mode: str | None = None  # None: as the spec says
    train: Train | None = None  # in place of parcae_core.training.train.train
    ray: bool = True  # False: plain processes on this machine, see sweeps.runner.pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all trials of one `run` share; sent to the workers."""

    out: str
    sweep: str
    session: str  # of this `run`; names the stop file
    data_dirs: dict[str, str]  # by `data_key`
    spec_sha256: str
    git_commit: str | None
    wandb_mode: str = "disabled"
    wandb_project: str = "parcae-scaling"
    options: Options = Options()
    early_stopping: bool = False  # trials are compared at `rungs_of` their steps
    branches: dict[str, tuple[str, ...]] = field(default_factory=dict)  # see design.trunks

    @property
    def store(self) -> Store:
        """As a worker sees it."""
        return Store(self.out, self.sweep, working=True)

    def data_dir(self, trial: Trial) -> Path:
        """The prepared rows of a trial, on this node."""
        return pull_data(self.store.storage, self.data_dirs[data_key(trial)])

    @property
    def stop_file(self) -> Path:
        """Exists once this `run` has been asked to stop."""
        return self.store.stop_file(self.session)


def data_key(trial: Trial) -> str:
    """What tells the prepared rows of trials apart: text, packing, ids and length."""
    return f"{trial.data.content}-{trial.data.tokenizer}-{trial.context + 1}"


def run_trial(config: dict[str, Any]) -> None:
    """The function that Tune runs: config holds a Job and a trial_id."""
    from ray import tune

    try:
        attempt(config["job"], config["trial_id"], tune.report)
    except LeaseLost:
        # The driver that scheduled this worker has given it up, so nobody will end it; a GPU's memory
        # would stay taken until somebody did
        os._exit(1)


def attempt(job: Job, trial_id: str, announce: Callable[[dict[str, Any]], None]) -> None:
    """One attempt at a trial: claim, train, record, announce; see the module for how it may end.

    Raises:
        Exception: only what another attempt may cure.
    """
    store = job.store
    trial, finished = _claim(job, store, trial_id)
    if finished or job.stop_file.exists():
        return announce({"state": "finished" if finished else "planned"})
    report = store.report(trial_id)
    # On record since this worker's process, the one before, was replaced for it
    recorded = report is not None and (report.state, report.session) == ("failed", job.session)
    if not recorded:
        with (
            lease(store.folder(trial_id), store.storage, wait_s=job.options.lease_wait_s) as held,
            pushing(store.storage, trial, held, follow=(job.stop_file,)),
            _shown(job, trial) as live,
        ):
            branches = HandOver(store, trial, job.branches.get(trial_id), held)
            with Heartbeat(job, trial, held) as heartbeat, branches:
                asked = announce if job.early_stopping else None
                rungs = Rungs(store, trial, held, job.stop_file, asked)
                outcome = _train(job, trial, held, heartbeat, rungs, branches.keep_steps)
            report = _record(store.files(trial_id), held, heartbeat, outcome, rungs.halt)
            if report.state in ENDED:
                _mirror(job, trial, report, live)
    announce({"state": report.state, "step": report.step})
    if report.state == "failed" and trial.resources.gpus and not recorded:
        # A CUDA error can outlive its trial; ending the process is what clears it
        raise WorkerRetired(report.reason)
    return None


class WorkerRetired(Exception):
    """Makes Tune replace a worker process after a failure that is already on record."""


def _claim(job: Job, store: Store, trial_id: str) -> tuple[Trial, bool]:
    """The trial, and whether it has a result, as the other nodes see it."""
    files = store.files(trial_id)
    store.storage.pull([*files.small, files.halt, store.root / "sweep.json", job.stop_file])
    trial = store.trial(trial_id)
    if trial is None:
        raise RuntimeError(f"{files.trial} is missing or damaged; `parcae run` writes it again")
    for path in (*files.small, files.metrics):
        if path.is_dir():
            raise RuntimeError(f"{path} is a folder where a file belongs; move it away")
    finished = store.result(trial) is not None  # a retry after the result was written
    if finished:
        store.storage.push(files.result)
    return trial, finished


def _train(
    job: Job,
    trial: Trial,
    held: Lease,
    heartbeat: Heartbeat,
    rungs: Rungs,
    keep_steps: tuple[int, ...],
) -> TrainResult | Exception:
    """The result, or what ended the training instead."""
    gpus, stop_file, asked_at = trial.resources.gpus, job.stop_file, time.monotonic()

    def stop_requested() -> bool:
        """Asked before every step, so it looks at the disk only once a second."""
        nonlocal asked_at
        if rungs.halt is not None:
            return True
        if time.monotonic() - asked_at < ASK_EVERY_S:
            return False
        asked_at = time.monotonic()
        held.require()  # raises out of the training loop: nothing more is written
        return stop_file.exists()

    def on_report(line: dict[str, Any]) -> None:
        heartbeat.on_report(line)
        rungs.on_report(line)

    try:
        train = _trainer(job, trial, held)
        if 0 < gpus < 1:
            from parcae_core.device import keep_to_share

            keep_to_share(gpus)
        return train(
            trial,
            data_dir=job.data_dir(trial),
            run_dir=job.store.folder(trial.trial_id),
            on_report=on_report,
            execution=Execution(
                device="cuda" if gpus else "cpu",
                threads=trial.resources.threads,
                compile=trial.resources.compile,
                cuda_graphs=trial.resources.compile and gpus > 0,
                micro_batch_sequences="auto" if gpus else None,
                checkpoint_every_s=job.options.checkpoint_every_s,
                keep_steps=keep_steps,
                stop_requested=stop_requested,
            ),
        )
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - `_record` decides what it means
        return error


def _record(
    files: TrialFiles,
    held: Lease,
    heartbeat: Heartbeat,
    outcome: TrainResult | Exception,
    halt: str | None,
) -> StateReport:
    """Write the outcome down: the result or the error, then the report.

    Args:
        halt: why a scheduler wanted the trial to end where it was interrupted.

    Raises:
        LeaseLost: before anything is written.
        Exception: the outcome, if the system failed and another attempt may cure it. Nothing is
            written if this process is about to end: the trial is left as by a killed worker.
    """
    held.require()
    if isinstance(outcome, Exception) and process_ending():
        raise outcome
    if isinstance(outcome, Interrupted) and outcome.so_far is not None and halt is not None:
        outcome = replace(outcome.so_far, reason=halt)
    if not isinstance(outcome, Exception):
        write_json(files.result, sealed(outcome.to_dict()))
        ended = {"state": outcome.status, "step": outcome.step, "reason": outcome.reason}
    elif isinstance(outcome, Interrupted):
        ended = {"state": "planned", "reason": "stopped on request"}
    elif (cause := environment(outcome)) is not None:
        ended = {"state": "planned", "reason": str(cause)}
    else:
        write_synced(files.error, "".join(traceback.format_exception(outcome)))
        ended = {"state": "failed", "reason": reason_of(outcome)}
    heartbeat.write(replace(heartbeat.report, **ended))
    if isinstance(outcome, Exception) and environment(outcome) is not None:
        raise outcome
    return heartbeat.report


def _trainer(job: Job, trial: Trial, held: Lease) -> Train:
    if job.options.train is not None:
        return job.options.train
    if trial.resources.processes == 1:
        from parcae_core.training.train import train

        return train
    from sweeps.runner.process_group import train_together
    from sweeps.runner.process_group_ray import processes_over_nodes

    keep_open = (held.lock,)
    checkpoints = sorted(job.store.files(trial.trial_id).checkpoints.glob("step-*"))
    join = partial(_join, job, trial, checkpoints[-1].name if checkpoints else None)
    processes = processes_over_nodes(trial.resources.processes, keep_open, join)
    return partial(train_together, keep_open=keep_open, processes=processes)


def _join(job: Job, trial: Trial, checkpoint: str | None) -> dict[str, Any]:
    """On another node of a trial: where its data and its folder are there."""
    store = job.store
    pull_checkpoint(store.storage, trial, wanted=checkpoint or "")
    return {
        "data_dir": str(job.data_dir(trial)),
        "run_dir": str(store.folder(trial.trial_id)),
    }


class Heartbeat:
    """Keeps state.json fresh while a trial runs; `report` is what it says now."""

    def __init__(self, job: Job, trial: Trial, held: Lease) -> None:
        before = job.store.report(trial.trial_id) or StateReport(state="planned")
        self.files, self.held = job.store.files(trial.trial_id), held
        self.file = self.files.state
        self.report = StateReport(
            state="running",
            attempts=before.attempts + 1,
            lost_workers=before.lost_workers,
            lost_reason=before.lost_reason,
            session=job.session,
            host=os.uname().nodename,
            pid=os.getpid(),
            spec_sha256=job.spec_sha256,
            git_commit=job.git_commit,
        )

    def __enter__(self) -> Heartbeat:
        self.write(self.report)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def on_report(self, line: dict[str, Any]) -> None:
        """A line of the metrics, for the next beat."""
        self.report = self.report.training(line)

    def write(self, report: StateReport) -> None:
        """Replace the report now."""
        self.report = report
        self._write()

    def _write(self) -> None:
        self.report = replace(self.report, checkpoint_step=self.files.newest_step())
        try:
            self.report.write(self.file)
        except OSError as error:
            # The state is for people; the trainer meets the same disk and decides what it means
            print(f"{self.file}: not written ({error})", flush=True)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            if self.held.held():
                self._write()


def _mirror(job: Job, trial: Trial, report: StateReport, live: Live | None) -> None:
    if job.wandb_mode == "disabled":
        return
    problem = None if live is None else live.end()
    if live is None or problem is not None:
        offline = mirror(job.store, trial, project=job.wandb_project)
        problem = offline or problem
    if problem is not None:
        replace(report, wandb_problem=problem).write(job.store.files(trial.trial_id).state)


@contextmanager
def _shown(job: Job, trial: Trial) -> Iterator[Live | None]:
    """With W&B online, the trial's curves on the server while it trains; never an exception."""
    if job.wandb_mode != "online":
        yield None
        return
    try:
        live = Live(job.store, trial.trial_id, job.wandb_project)
    except OSError as error:  # no memory for a process: the run is written offline at the end
        print(f"{trial.trial_id}: W&B will not be live ({error})", flush=True)
        yield None
        return
    try:
        yield live
    finally:
        live.close()
