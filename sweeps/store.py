"""The folder of a sweep: the truth about what was planned, what ran and what came out.

<out> is a folder that every node sees, or the URL of an object store (`sweeps.storage.base`).

    <out>/<sweep>/sweep.json        name, spec hash, trial ids in plan order, commit, where the spec lay,
                                    an id of the folder
                  spec.yaml         the spec as it was given
                  <trial_id>/trial.json       the planned trial (sweeps)
                             state.json, result.json         what its worker reports (sweeps.reports)
                             error.txt        traceback of a failure (sweeps)
                             scores.json      of its model on tasks (sweeps.scoring.scores)
                             metrics.jsonl, checkpoints/, branches/     (parcae_core.training.train)
                             wandb/           mirror (sweeps.tracking)
                  wandb/          the sweep's own run (sweeps.tracking.sweep_run)

A state is derived, never believed: "done", "diverged" and "stopped" mean that result.json fits trial.json.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from parcae_core import plain
from parcae_core.data.io import remove_leftovers, write_synced
from parcae_core.errors import UserError
from parcae_core.result import TrainResult
from parcae_core.trial import Trial, planned_to_dict, trial_from_dict
from sweeps.design.plan import Plan
from sweeps.design.spec import load_spec, spec_text
from sweeps.reports import FINISHED, StateReport, read_result
from sweeps.storage.base import Storage, require_writable
from sweeps.storage.bucket import ObjectStorage
from sweeps.storage.files import (
    TrialFiles,
    problem_of,
    read_json,
    require_plain_name,
    sealed,
    write_json,
)
from sweeps.storage.local import LocalStorage
from sweeps.storage.objects import is_url

# A worker renews its state at least this often; older than STALE_S, it is taken for dead
HEARTBEAT_S = 4.0
STALE_S = 60.0

PROJECT = Path(__file__).resolve().parents[1]
COMMIT_VARIABLE = "PARCAE_GIT_COMMIT"  # of a job whose files came without .git


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    """What sweep.json has to hold."""

    trials: list[str]
    name: str = ""
    design: str = ""
    spec_sha256: str = ""
    spec_folder: str = ""
    git_commit: str | None = None
    folder_id: str = ""


class Store:
    """One sweep's folder; for an object store, `root` is a working copy of it on this node."""

    def __init__(self, out: Path | str, name: str, *, working: bool = False) -> None:
        self.name, out = name, str(out).removeprefix("file://")
        self.storage: Storage = (
            ObjectStorage(out, name, working=working)
            if is_url(out)
            else LocalStorage(Path(out), name)
        )
        self.root = self.storage.root
        self.out = self.root.parent

    @property
    def where(self) -> str:
        """The sweep's place as a user names it: a folder or a URL."""
        return f"{self.storage.place}/{self.name}"

    @property
    def quoted(self) -> str:
        """The same as a command has it."""
        return shlex.quote(self.where)

    def folder(self, trial_id: str) -> Path:
        return self.root / trial_id

    def files(self, trial_id: str) -> TrialFiles:
        """The names in a trial's folder."""
        return TrialFiles(self.root / trial_id)

    @property
    def sweep(self) -> dict[str, Any] | None:
        """sweep.json, or None before the first `run`.

        Raises:
            UserError: if it is damaged.
        """
        path = self.root / "sweep.json"
        try:
            if not path.exists():
                return None
            sweep = plain.read_json(path)
            known = {f.name: sweep[f.name] for f in fields(_Planned) if f.name in sweep}
            for trial_id in plain.build(_Planned, known, f"{path}: sweep").trials:
                require_plain_name(trial_id, str(path))
        except ValueError as error:  # UserError too
            raise UserError(
                f"{error}\nRemove it and start `parcae run` again: what has finished counts as before."
            ) from None
        return sweep

    @property
    def folder_id(self) -> str:
        """Drawn when the folder was first planned: tells its W&B runs from those of another folder with the
        same sweep or trials; "" of a folder from before, whose runs are known without one."""
        return (self.sweep or {}).get("folder_id", "")

    def refresh(self) -> None:
        """See what others have written since.

        Raises:
            UserError: if the object store cannot be read.
        """
        try:
            self.storage.pull()
        except OSError as error:
            raise UserError(
                f"{self.where}: cannot be read ({error}); check the bucket's name, the network and "
                "this machine's credentials. What has been written there is safe."
            ) from error

    # ---- reading -------------------------------------------------------------------------------

    def stored_trials(self) -> list[Trial]:
        """Every trial that has a folder here, the current plan's first and in its order."""
        return [t for i in self._stored_ids() if (t := self.trial(i)) is not None]

    def problems(self) -> dict[str, str]:
        """trial_id -> what is damaged of a trial that the sweep planned or has a folder of."""
        found = {}
        for trial_id in self._stored_ids():
            trial, problem = self._read_trial(trial_id)
            path = self.files(trial_id).result
            if trial is not None and path.exists():
                problem = read_result(path, trial)[1]
                problem = problem and f"{path.name} is not accepted: {problem}"
            if problem:
                found[trial_id] = problem
        return found

    def _stored_ids(self) -> list[str]:
        order = {i: n for n, i in enumerate((self.sweep or {}).get("trials", []))}
        found = {p.parent.name for p in self.root.glob("*/trial.json")}
        return sorted(found | order.keys(), key=lambda i: (order.get(i, len(order)), i))

    def trial(self, trial_id: str) -> Trial | None:
        """The stored trial; None if it is absent, damaged, or hashes to another id."""
        return self._read_trial(trial_id)[0]

    def _read_trial(self, trial_id: str) -> tuple[Trial | None, str]:
        path = self.files(trial_id).trial
        if problem := problem_of(path):
            return None, problem
        data = read_json(path)
        if data is None:
            return None, f"{path}: not there, and sweep.json names the trial"
        try:
            trial = trial_from_dict(data)
        except ValueError as error:
            return None, f"{path}: {error}"
        if trial.trial_id != trial_id:
            return None, f"{path}: it describes trial {trial.trial_id}, a value has changed"
        return trial, ""

    def result(self, trial: Trial) -> TrainResult | None:
        """The result if it shows that the trial ended as planned."""
        return read_result(self.files(trial.trial_id).result, trial)[0]

    def report(self, trial_id: str) -> StateReport | None:
        """What the trial's worker reported last."""
        return StateReport.read(self.files(trial_id).state)

    def state(self, trial: Trial) -> StateReport:
        """A trial's report as what its folder really holds corrects it."""
        files = self.files(trial.trial_id)
        report = self.report(trial.trial_id) or StateReport(state="planned", time=0)
        result, problem = read_result(files.result, trial)
        loss = report.loss if isinstance(report.loss, (int, float)) else None
        known = replace(report, state="planned", loss=loss, tokens_per_s=None)
        if result is not None:
            return replace(
                known,
                state=result.status,
                step=result.step,
                reason=result.reason,
                loss=result.final_train_loss,
                tokens_per_s=result.tokens_per_s,
            )
        if report.state == "failed":
            return replace(known, state="failed")
        if report.state == "running" and time.time() - report.time < STALE_S:
            return replace(known, state="running", tokens_per_s=report.tokens_per_s, reason=None)
        if files.result.exists():
            return replace(
                known, reason=f"result.json is not accepted: {problem}; it will run again"
            )
        if damage := problem_of(files.state):
            return replace(known, reason=damage)
        if report.state == "running":
            silent = f"its worker went silent at step {known.step}; it will go on from there"
            return replace(known, reason=silent)
        return known

    # ---- writing -------------------------------------------------------------------------------

    def check(self, plan: Plan, spec_path: Path, *, extend: bool) -> None:
        """Refuse a folder that cannot take this plan; writes nothing but a probe.

        Raises:
            UserError: not writable, or a changed spec over finished trials without `extend`.
        """
        self.refresh()
        self._check_unchanged(plan, spec_path, extend=extend)
        require_writable(self.storage)

    def _check_unchanged(self, plan: Plan, spec_path: Path, *, extend: bool) -> None:
        before = self.sweep
        if before is None or extend:
            return
        old, new = set(before.get("trials", [])), set(plan.trial_ids)
        if old == new:
            return
        finished = [t for t in self.stored_trials() if self.state(t).state in FINISHED]
        if not finished:
            return
        added, gone = len(new - old), len(old - new)
        raise UserError(
            f"{self.where} was planned from spec {before.get('spec_sha256', '?')[:8]}, but {spec_path} "
            f"is now {plan.spec.sha256[:8]}: {added} trial{'s' * (added != 1)} new, {gone} gone. Pass "
            f"--extend to keep the {len(finished)} finished and run the {added} new, or give the "
            "changed spec another name."
        )

    def write_plan(self, plan: Plan, spec_path: Path) -> None:
        """Record the plan: sweep.json, spec.yaml and one trial.json per trial."""
        before = self.sweep
        self.root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.root)
        for trial in plan.trials:
            self.folder(trial.trial_id).mkdir(exist_ok=True)
            remove_leftovers(self.folder(trial.trial_id))
            self._write_json(self.files(trial.trial_id).trial, sealed(planned_to_dict(trial)))
        write_synced(self.root / "spec.yaml", spec_text(spec_path, plan.changes))
        self.storage.push(self.root / "spec.yaml")
        sweep = {
            "name": plan.name,
            "design": plan.spec.design,
            "spec_sha256": plan.spec.sha256,
            "spec_folder": str(spec_folder(spec_path)),
            "trials": list(plan.trial_ids),
            "git_commit": git_commit(),
        }
        if folder_id := uuid.uuid4().hex[:8] if before is None else before.get("folder_id"):
            sweep["folder_id"] = folder_id
        self._write_json(self.root / "sweep.json", sweep)

    def _write_json(self, path: Path, data: dict[str, Any]) -> None:
        """Write and publish a file, unless it is there already."""
        if read_json(path) != data:
            write_json(path, data)
            self.storage.push(path)

    def forget_failure(self, trial_id: str) -> None:
        """Let a failed trial be planned again; it goes on from its newest checkpoint."""
        files, report = self.files(trial_id), self.report(trial_id)
        if report is None:
            self.storage.delete(files.state, files.error)
            return
        replace(report, state="planned", reason=None).write(files.state)
        self.storage.push(files.state)
        self.storage.delete(files.error)

    def take_up_stopped(self, trials: Sequence[Trial]) -> None:
        """Let trials that a scheduler stopped go on from their checkpoints, now that none is asked for."""
        for trial in trials:
            if self.state(trial).state == "stopped":
                files = self.files(trial.trial_id)
                self.storage.delete(files.halt, files.result)

    def request_stop(self, session: str) -> threading.Thread:
        """Ask the workers of a `run` to end. Called by a signal's handler, so it waits for nothing.

        Returns:
            The thread that tells the other nodes.
        """
        path = self.stop_file(session)
        for folder in {self.root, self.storage.work_root}:  # even if the object store is away
            if folder.is_dir():
                (folder / path.name).touch()
        thread = threading.Thread(target=self._tell_others, args=(path,), daemon=True)
        thread.start()
        return thread

    def _tell_others(self, path: Path) -> None:
        try:
            self.storage.push(path)
        except OSError as error:
            print(f"{self.where}: workers elsewhere were not reached ({error})", file=sys.stderr)

    def forget_stop(self, session: str) -> None:
        """Take a request back once no worker is left that it could stop."""
        path = self.stop_file(session)
        if path.exists():
            (self.storage.work_root / path.name).unlink(missing_ok=True)
            with suppress(OSError):  # of a session that is over, it stops nobody
                self.storage.delete(path)

    def stop_file(self, session: str) -> Path:
        """Exists once a `run` has been asked to stop."""
        return self.root / f".stop-{session}"


def git_commit(checkout: Path = PROJECT) -> str | None:
    """The commit of a checkout, by default this project's, with `-dirty` if files differ.

    Returns:
        The commit; outside a checkout what `parcae submit` says it was, or None.
    """
    if shutil.which("git") is None or not (checkout / ".git").exists():
        return os.environ.get(COMMIT_VARIABLE) or None
    head = ["git", "-C", str(checkout)]
    head += ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(head, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def spec_folder(spec: Path) -> Path:
    """Where the paths in a spec start: at its folder; of the one that a sweep keeps, where that was taken from."""
    kept = read_json(spec.parent / "sweep.json") if spec.name == "spec.yaml" else None
    return Path((kept or {}).get("spec_folder") or spec.absolute().parent)


def open_sweep(source: str | Path, out: str | Path = "runs") -> Store:
    """The store that a user names: a folder or URL, a sweep's name under `out`, or a spec file.

    Raises:
        UserError: if there is no sweep of that name.
    """
    text = str(source)
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        store = Store(out, load_spec(path).name)
    elif is_url(text):
        place, _, name = text.rstrip("/").rpartition("/")
        store = Store(place, name)
    elif (path / "sweep.json").exists():
        store = Store(path.absolute().parent, path.absolute().name)
    else:
        store = Store(out, text)
    store.refresh()
    if store.sweep is None:
        raise UserError(
            f"{source}: no sweep at {store.where}; give a spec file, a sweep folder or the name of a "
            f"sweep under --out, or start one with `parcae run SPEC`."
        )
    return store
