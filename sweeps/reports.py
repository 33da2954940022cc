"""What a worker reports of its trial: state.json while it runs, result.json at its end."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from parcae_core.plain import build
from parcae_core.result import TrainResult
from parcae_core.trial import Trial
from sweeps.storage.files import problem_of, read_json, write_json

State = Literal["planned", "running", "done", "diverged", "stopped", "failed"]
FINISHED: tuple[State, ...] = ("done", "diverged", "stopped")  # there is a result
ENDED: tuple[State, ...] = (*FINISHED, "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateReport:
    """A worker's last report, which state.json holds; what does not apply is None and left out."""

    state: State
    step: int = 0  # of trial.n_steps
    loss: float | str | None = None  # training loss last logged, nats per token; "inf" is no JSON
    tokens_per_s: float | None = None
    reason: str | None = None  # why it failed, diverged or was stopped
    attempts: int = 0
    checkpoint_step: int = 0  # of the newest checkpoint
    lost_workers: int = 0  # in all
    lost_reason: str | None = None  # of the last of them
    session: str | None = None  # of the `run` that scheduled it
    host: str | None = None
    pid: int | None = None
    spec_sha256: str | None = None
    git_commit: str | None = None
    reused_from: str | None = None  # name of the sweep whose result this is
    wandb_problem: str | None = None
    time: float = field(default_factory=time.time)  # of writing

    def training(self, line: dict[str, Any]) -> Self:
        """After a line of the metrics."""
        loss = line.get("train/loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            loss = str(loss)
        return replace(
            self, step=line["step"], loss=loss, tokens_per_s=line.get("perf/tokens_per_s")
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The report in a file; None if there is none, or a damaged one."""
        data = read_json(path) or {}
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        try:
            return build(cls, known, "state.json") if known else None
        except ValueError:
            return None

    def write(self, path: Path) -> None:
        """Replace the file, with the time of now."""
        data = asdict(replace(self, time=time.time()))
        write_json(path, {k: v for k, v in data.items() if v is not None})


def read_result(path: Path, trial: Trial) -> tuple[TrainResult | None, str]:
    """The result in a file if it shows that the trial ended as planned.

    Returns:
        The result and "", or None and the reason.
    """
    if problem := problem_of(path):
        return None, problem
    data = read_json(path)
    if data is None:
        return None, "no result"
    if problem := _problem(trial, data):
        return None, problem
    known = {f.name for f in fields(TrainResult)}
    try:
        return build(TrainResult, {k: v for k, v in data.items() if k in known}, "result"), ""
    except ValueError as error:
        return None, f"it is not a whole result ({error})"


def _problem(trial: Trial, data: dict[str, Any]) -> str:
    if data.get("trial_id") != trial.trial_id:
        return f"the result is of trial {data.get('trial_id')}"
    if (status := data.get("status")) in ("diverged", "stopped"):
        return "" if data.get("reason") else f"{status} without a reason"
    if data.get("status") != "done":
        return f"status is {data.get('status')!r}"
    if data.get("step") != trial.n_steps:
        return f"step {data.get('step')} of {trial.n_steps}"
    rows = data.get("evaluation")
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        return "no evaluation"
    if [r.get("n_loops") for r in rows] != list(trial.evaluation.loops):
        return f"evaluated at {[r.get('n_loops') for r in rows]}"
    losses = [r.get("val_loss") for r in rows]
    if not all(isinstance(x, (int, float)) and math.isfinite(x) and x > 0 for x in losses):
        return f"validation losses are {losses}"
    return ""
