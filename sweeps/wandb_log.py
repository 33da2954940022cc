"""Weights & Biases as a mirror of a trial's folder; the only importer of wandb.

metrics.jsonl and result.json are the truth. The mirror is written from them in one go when a trial
ends, so that a run that was killed and resumed is one W&B run, complete, with id = trial_id; a
W&B that cannot be reached costs nothing during training and never fails a trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parcae_core.params import count_params
from parcae_core.trial import Trial, planned_flops, trial_to_dict
from sweeps.files import read_json

ONLINE_TIMEOUT_S = 5.0  # a plain online init blocks for 100 s when the server does not answer
FINISH_TIMEOUT_S = 30.0
SYNC_TIMEOUT_S = 120.0  # of one run; `wandb sync` alone would try for ever

_server_problem: str | None = None  # why this process gave up on the server


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each step once (its last line), in order of steps.

    A line that a kill cut short is left out.
    """
    if not path.exists():
        return []
    rows = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        rows[line["step"]] = line
    return [rows[step] for step in sorted(rows)]


def mirror(
    folder: Path, trial: Trial, *, sweep: str, mode: str, project: str, tags: tuple[str, ...] = ()
) -> str | None:
    """Write one W&B run from a trial's folder.

    Args:
        mode: offline, or online; when the server does not answer in time, the run is written
            offline for `parcae sync`.

    Returns:
        What went wrong, or None. Nothing is raised: the mirror is not the result.
    """
    global _server_problem
    problem = _server_problem if mode == "online" else None
    # Once is enough: a server that did not answer is not waited for again by this process
    modes = ("offline",) if problem else dict.fromkeys((mode, "offline"))
    for attempt_mode in modes:
        try:
            _write(folder, trial, sweep=sweep, mode=attempt_mode, project=project, tags=tags)
            return problem
        except Exception as error:  # noqa: BLE001 - whatever W&B does, the trial's result stands
            problem = f"W&B {attempt_mode}: {type(error).__name__}: {error}"
            if attempt_mode == "online":
                _server_problem = problem
            _forget_runs()
    return problem


def unsynced(root: Path) -> list[Path]:
    """Offline run folders of a sweep that no `sync` has sent yet, oldest first."""
    found = [p for p in root.glob("*/wandb/offline-run-*") if p.is_dir()]
    return sorted(p for p in found if not list(p.glob("*.wandb.synced")))


def sync(folder: Path) -> str | None:
    """Send one offline run to the server that W&B is set up for; what went wrong, or None."""
    command = [sys.executable, "-m", "wandb", "sync", "--yes", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SYNC_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SYNC_TIMEOUT_S:.0f} s"
    if done.returncode:
        return ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]
    return None if list(folder.glob("*.wandb.synced")) else "the server did not take it"


def _write(
    folder: Path, trial: Trial, *, sweep: str, mode: str, project: str, tags: tuple[str, ...]
) -> None:
    # Its own files (settings, keys) stay where the user has them; these are the run's
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings = wandb.Settings(
        init_timeout=ONLINE_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        silent=True,
    )
    run = wandb.init(
        project=project,
        group=sweep,
        id=trial.trial_id,
        name=trial.trial_id,
        tags=[t[:64] for t in tags],
        config=config_of(trial),
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",
        settings=settings,
    )
    for row in read_metrics(folder / "metrics.jsonl"):
        run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])
    result = read_json(folder / "result.json") or {}
    rows = result.get("evaluation") or []
    if rows:
        columns = ["n_loops", "val_loss", "val_bpb", "n_tokens"]
        table = wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in rows])
        run.log({"val/loops": table})
    run.summary.update(_summary(result))
    run.finish(exit_code=0 if result else 1)


def config_of(trial: Trial) -> dict[str, Any]:
    """What a W&B run's config holds: the trial, its counts and its FLOPs by every rule."""
    counts = count_params(trial.model)
    return trial_to_dict(trial) | {
        "trial_id": trial.trial_id,
        "mean_recurrence": trial.mean_recurrence,
        "mean_backprop_depth": trial.mean_backprop_depth,
        "n_tokens": trial.n_tokens,
        "n_params": counts.total,
        "n_params_unrolled": counts.unrolled(trial.mean_recurrence),
        "train_flops": planned_flops(trial),
    }


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in result.items() if k not in ("evaluation", "train_flops", "trial_id")}
    for row in result.get("evaluation") or []:
        plain[f"val/loss_at_{row['n_loops']}_loops"] = row["val_loss"]
    return plain


def _forget_runs() -> None:
    """Without this a second init with the same id says that the run is in use."""
    import wandb

    wandb.teardown()
