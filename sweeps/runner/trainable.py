"""What runs on a worker: one trial from its folder to its result. Ray Tune calls `run_trial`.

Tune only schedules. The trial is read from trial.json, checkpoints are the trainer's own, progress
is state.json and the outcome result.json. Tune hears one word at the end: its `report` waits for the
driver, and a worker whose driver or raylet is gone would wait in it for ever, holding the folder.

How an attempt ends:
    done, diverged      result.json; never run again
    our own exception   state "failed" with the reason; not retried, since it would fail again
    a full disk, a dead process, worker or node, a lost lease     raised, or simply gone: Tune
                        retries, and the next attempt goes on from the newest good checkpoint
    asked to stop       a checkpoint; the trial stays planned
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcae_core.result import Execution, Interrupted, TrainResult
from parcae_core.trial import Trial
from sweeps.runner.errors import environment, reason_of
from sweeps.storage.files import read_json, write_atomic, write_json
from sweeps.storage.lease import Lease, LeaseLost, lease
from sweeps.store import HEARTBEAT_S, Store

if TYPE_CHECKING:
    from sweeps.tracking.live import Live

Train = Callable[..., TrainResult]
ASK_EVERY_S = 1.0  # how often the stop file and the lease are looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all trials of one `run` share; sent to the workers."""

    out: str
    sweep: str
    session: str  # of this `run`; names the stop file
    data_dirs: dict[str, str]  # by `data_key`
    spec_sha256: str
    git_commit: str | None
    design: str
    wandb_mode: str = "disabled"
    wandb_project: str = "parcae-scaling"
    checkpoint_every_s: float = 120.0
    lease_wait_s: float = 60.0
    train: Train | None = None  # None: parcae_core.training.train.train

    @property
    def store(self) -> Store:
        """As a worker sees it."""
        return Store(self.out, self.sweep, working=True)

    def data_dir(self, trial: Trial) -> Path:
        """The prepared rows of a trial, on this node."""
        return self.store.storage.data_dir(self.data_dirs[data_key(trial)])

    @property
    def stop_file(self) -> Path:
        """Exists once this `run` has been asked to stop."""
        return self.store.stop_file(self.session)


def data_key(trial: Trial) -> str:
    """What tells the prepared rows of trials apart: text, ids and length."""
    return f"{trial.data.fingerprint[:16]}-{trial.data.tokenizer}-{trial.context + 1}"


def run_trial(config: dict[str, Any]) -> None:
    """The function that Tune runs: config holds a Job and a trial_id."""
    from ray import tune

    job: Job = config["job"]
    try:
        attempt(job, config["trial_id"], report=tune.report)
    except LeaseLost:
        # Whoever scheduled this worker has given it up, so nobody will end it; a GPU's memory
        # would stay taken until somebody did
        os._exit(1)


def attempt(job: Job, trial_id: str, report: Callable[[dict[str, Any]], None]) -> None:
    """One attempt at a trial; see the module for how it may end.

    Raises:
        Exception: only what another attempt may cure.
    """
    store = job.store
    storage = store.storage
    storage.pull_trial(trial_id, "sweep.json", job.stop_file.name)
    trial = store.trial(trial_id)
    if trial is None:
        raise RuntimeError(f"{store.folder(trial_id)}: trial.json is missing or damaged")
    if store.result(trial) is not None:  # a retry after the result was written
        storage.push(store.folder(trial_id) / "result.json")
        return report({"state": "finished"})
    if job.stop_file.exists():
        return report({"state": "planned"})
    with (
        lease(store.folder(trial_id), wait_s=job.lease_wait_s, storage=storage) as held,
        storage.at_work(trial, held, follow=(job.stop_file,)),
        _shown(job, trial) as live,
    ):
        heartbeat = Heartbeat(store, trial, held)
        with heartbeat:
            outcome = _train(job, trial, held, heartbeat)
        heartbeat.end(outcome)
        if outcome["state"] in ("done", "diverged", "failed"):
            _mirror(job, trial, outcome, live)
    report({"state": outcome["state"], "step": outcome["step"]})
    if outcome["state"] == "failed" and trial.resources.gpus and not outcome.get("retired"):
        # A CUDA error can outlive its trial; ending the process is what clears it
        raise WorkerRetired(outcome["reason"])


class WorkerRetired(Exception):
    """Makes Tune replace a worker process after a failure that is already on record."""


def _train(job: Job, trial: Trial, held: Lease, heartbeat: Heartbeat) -> dict[str, Any]:
    store = job.store
    folder = store.folder(trial.trial_id)
    said = read_json(folder / "state.json") or {}
    if said.get("state") == "failed" and said.get("session") == job.session:
        return said | {"retired": True}
    heartbeat.begin(
        attempts=said.get("attempts", 0) + 1,
        session=job.session,
        spec_sha256=job.spec_sha256,
        git_commit=job.git_commit,
    )
    try:
        result = _call_train(job, trial, held, heartbeat)
    except Interrupted:
        held.require()
        return heartbeat.report | {"state": "planned", "reason": "stopped on request"}
    except LeaseLost:
        raise
    except Exception as error:
        held.require()
        if (cause := environment(error)) is not None:
            store.write_state(
                trial.trial_id, **(heartbeat.report | {"state": "planned", "reason": str(cause)})
            )
            raise
        write_atomic(folder / "error.txt", traceback.format_exc())
        return heartbeat.report | {"state": "failed", "reason": reason_of(error)}
    held.require()
    write_json(folder / "result.json", result.to_dict())
    return heartbeat.report | {"state": result.status, "step": result.step, "reason": result.reason}


def _call_train(job: Job, trial: Trial, held: Lease, heartbeat: Heartbeat) -> TrainResult:
    train, gpus = _trainer(job, trial, held), trial.resources.gpus
    if 0 < gpus < 1:
        from parcae_core.device import keep_to_share

        keep_to_share(gpus)
    execution = Execution(
        device="cuda" if gpus else "cpu",
        threads=trial.resources.threads,
        compile=trial.resources.compile,
        cuda_graphs=trial.resources.compile and gpus > 0,
        micro_batch_sequences="auto" if gpus else None,
        checkpoint_every_s=job.checkpoint_every_s,
        stop_requested=_StopRequested(job, held),
    )
    return train(
        trial,
        data_dir=job.data_dir(trial),
        run_dir=job.store.folder(trial.trial_id),
        on_report=heartbeat.on_report,
        execution=execution,
    )


def _trainer(job: Job, trial: Trial, held: Lease) -> Train:
    if job.train is not None:
        return job.train
    if trial.resources.processes == 1:
        from parcae_core.training.train import train

        return train
    from sweeps.runner.process_group import train_together
    from sweeps.runner.process_group_ray import processes_over_nodes

    keep_open = () if held.lock is None else (held.lock,)
    checkpoints = sorted((job.store.folder(trial.trial_id) / "checkpoints").glob("step-*"))
    join = partial(_join, job, trial, checkpoints[-1].name if checkpoints else None)
    processes = processes_over_nodes(trial.resources.processes, keep_open, join)
    return partial(train_together, keep_open=keep_open, processes=processes)


def _join(job: Job, trial: Trial, checkpoint: str | None) -> dict[str, Any]:
    """On another node of a trial: where its data and its folder are there."""
    store = job.store
    store.storage.join(trial, checkpoint)
    return {
        "data_dir": str(job.data_dir(trial)),
        "run_dir": str(store.folder(trial.trial_id)),
    }


class _StopRequested:
    """Asked before every step, so it looks at the disk only once a second."""

    def __init__(self, job: Job, held: Lease) -> None:
        self.stop_file, self.held = job.stop_file, held
        self.asked_at = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self.asked_at < ASK_EVERY_S:
            return False
        self.asked_at = time.monotonic()
        self.held.require()  # raises out of the training loop: nothing more is written
        return self.stop_file.exists()


@dataclass
class Heartbeat:
    """Keeps state.json fresh while a trial runs."""

    store: Store
    trial: Trial
    held: Lease
    report: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Heartbeat:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self, **said: Any) -> None:
        host, pid = os.uname().nodename, os.getpid()
        self.report = {"state": "running", "step": 0, "host": host, "pid": pid} | said
        self._write()

    def on_report(self, line: dict[str, Any]) -> None:
        self.report = self.report | {  # a new dict: the other thread may be writing the old one
            "step": line["step"],
            "loss": line.get("train/loss"),
            "tokens_per_s": line.get("perf/tokens_per_s"),
        }

    def end(self, outcome: dict[str, Any]) -> None:
        self.report = {k: v for k, v in outcome.items() if k not in ("time", "retired")}
        self._write()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            if self.report and self.held.held():
                self._write()

    def _write(self) -> None:
        try:
            self.store.write_state(self.trial.trial_id, **_finite(self.report))
        except OSError as error:
            # The state is for people; the trainer meets the same disk and decides what it means
            print(f"{self.trial.trial_id}: state.json not written ({error})", flush=True)


def _finite(said: dict[str, Any]) -> dict[str, Any]:
    """A loss may be infinite on the way to diverging; JSON has no such number."""
    return {k: v if not isinstance(v, float) or abs(v) < 1e300 else str(v) for k, v in said.items()}


def _mirror(job: Job, trial: Trial, outcome: dict[str, Any], live: Live | None) -> None:
    if job.wandb_mode == "disabled":
        return
    problem = None if live is None else live.end()
    if live is None or problem is not None:
        from sweeps.tracking.trial_run import mirror

        offline = mirror(job.store, trial, project=job.wandb_project)
        problem = offline or problem
    if problem is not None:
        job.store.write_state(trial.trial_id, **_finite(outcome), wandb_problem=problem)


@contextmanager
def _shown(job: Job, trial: Trial) -> Iterator[Live | None]:
    """With W&B online, the trial's curves on the server while it trains; never an exception."""
    if job.wandb_mode != "online":
        yield None
        return
    from sweeps.tracking.live import Live

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
