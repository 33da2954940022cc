"""A trial's folder as one W&B run, and opening and marking a run of any kind.

metrics.jsonl and result.json are the truth and W&B is their mirror. Offline, the run is written from
them in one go when the trial has ended: W&B cannot go on with an offline run, so one written while
training would end up in as many pieces as the trial had attempts. Online, `sweeps.tracking.live` shows
the trial while it trains, and this module writes what it could not send.

Only the modules of this room import wandb, each inside the function that needs it: it takes a second
to load, and the base install has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcae_core.training.metrics import read_metrics
from parcae_core.trial import Trial, trial_to_dict
from sweeps.records import evaluated, outcome_columns, planned_columns
from sweeps.storage.files import TrialFiles, read_json, write_json
from sweeps.store import Store

if TYPE_CHECKING:
    import wandb


# ---- a run of any kind ---------------------------------------------------------------------------


def open_run(
    store: Store,
    folder: Path,
    *,
    run_id: str,
    project: str,
    job_type: str,
    mode: str,
    config: dict[str, Any],
    init_timeout_s: float = 30.0,
    finish_timeout_s: float = 30.0,
) -> wandb.Run:
    """A W&B run whose files lie under folder/wandb; an online run of the same id goes on.

    Args:
        project: PROJECT, or ENTITY/PROJECT.

    Raises:
        Exception: whatever W&B raises. `finish` of the run raises TimeoutError when the data could
            not be sent in time.
    """
    # Its settings and keys stay where the user has them; nothing is printed over our progress
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    sweep = store.sweep or {}
    tags = (
        sweep.get("design", "unknown"),
        f"spec-{sweep.get('spec_sha256', 'none')[:12]}",
        f"commit-{(sweep.get('git_commit') or 'none')[:12]}",
    )
    entity, _, project = project.rpartition("/")
    # What is offline stays with the sweep, where `sync` and the other nodes find it
    place = os.environ.get("WANDB_DIR") if mode == "online" else None
    return wandb.init(
        entity=entity or None,
        project=project,
        group=store.name,
        job_type=job_type,
        id=run_id,
        name=run_id,
        tags=[t[:64] for t in tags],  # W&B takes no longer ones
        config=config,
        dir=place or str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",
        settings=wandb.Settings(
            init_timeout=init_timeout_s,
            finish_timeout=finish_timeout_s,
            finish_timeout_raises=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_save_requirements=False,
            silent=True,
        ),
    )


def forget_runs() -> None:
    """After a failed init; without this a second init of the same id says that the run is in use."""
    import wandb

    wandb.teardown()


def digest(data: Any) -> str:
    """Hash of what a run would hold, to tell whether it has been written."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def written(folder: Path) -> dict[str, Any]:
    """The marker in a folder: "of" (a digest), "mode" and "id" of its run; empty without one."""
    return read_json(TrialFiles(folder).mirror) or {}


def mark(folder: Path, **marker: str) -> None:
    """Record that a run is complete, on the server or in its offline folder."""
    write_json(TrialFiles(folder).mirror, marker)


def drop_unsent(folder: Path, run_id: str) -> None:
    """Remove offline runs of this id that nobody has sent: what is written next replaces them.

    W&B cannot go on with an offline run; two folders of one id would be sent as two parts.
    """
    for old in folder.glob(f"wandb/offline-run-*-{run_id}"):
        if not list(old.glob("*.wandb.synced")):
            shutil.rmtree(old)


# ---- a trial's run -------------------------------------------------------------------------------


def mirror(store: Store, trial: Trial, *, project: str) -> str | None:
    """Write an ended trial's run offline, for `parcae sync`; what went wrong, or None.

    Repeating it writes nothing. Nothing is raised: the mirror is not the result.
    """
    files = store.files(trial.trial_id)
    try:
        if written(files.folder).get("of") == _outcome_digest(store, trial):
            return None
        drop_unsent(files.folder, run_id(store, trial))
        run = begin(store, trial, project=project, mode="offline")
        log_rows(run, read_metrics(files.metrics))
        end(run, store, trial, mode="offline")
        return None
    except Exception as error:  # noqa: BLE001 - whatever W&B does, the trial's result stands
        forget_runs()
        return f"W&B offline: {type(error).__name__}: {error}"


def run_id(store: Store, trial: Trial) -> str:
    """Of one trial in one folder: other sweeps, and other people's, may train the same.

    In a folder from before these ids, the trial_id; a result taken over from another sweep says so.
    """
    if store.folder_id:
        return f"{trial.trial_id}-{store.folder_id}"
    report = store.report(trial.trial_id)
    reused = report is not None and report.reused_from is not None
    return f"{trial.trial_id}-{store.name}" if reused else trial.trial_id


def begin(store: Store, trial: Trial, *, project: str, mode: str, **timeouts: float) -> wandb.Run:
    """Open a trial's run. Raises what W&B raises."""
    return open_run(
        store,
        store.folder(trial.trial_id),
        run_id=run_id(store, trial),
        project=project,
        job_type="trial",
        mode=mode,
        config=config_of(store, trial),
        **timeouts,
    )


def log_rows(run: wandb.Run, rows: list[dict[str, Any]]) -> None:
    """Lines of metrics.jsonl under their own steps."""
    for row in rows:
        run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def end(run: wandb.Run, store: Store, trial: Trial, *, mode: str) -> None:
    """Add the outcome of a trial that has ended, finish its run, and mark it as written.

    Raises:
        Exception: whatever W&B raises; TimeoutError if the data could not be sent in time.
    """
    import wandb

    result = store.result(trial)
    if result is not None:
        rows = evaluated(store, trial)
        columns = list(rows[0])
        table = wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in rows])
        # the row of the last step, unless an earlier attempt has sent that
        run.log({"val/loops": table}, step=max(result.step, run.step))
    run.summary.update(summary_of(store, trial))
    run.finish(exit_code=0 if result is not None else 1)
    outcome = _outcome_digest(store, trial)
    mark(store.folder(trial.trial_id), of=outcome, mode=mode, id=run_id(store, trial))


def config_of(store: Store, trial: Trial) -> dict[str, Any]:
    """What a run's config holds: the trial, and under "record" what the records table has of it."""
    record = planned_columns(trial) | {"sweep": store.name}
    shown = ("trial_id", "mean_recurrence", "mean_backprop_depth", "n_tokens", "n_params")
    return (
        trial_to_dict(trial)
        | {name: record[name] for name in (*shown, "n_params_unrolled")}
        | {"train_flops": trial.cost.train_flops, "record": record}
    )


def summary_of(store: Store, trial: Trial) -> dict[str, Any]:
    """What a run's summary gets at the end: the result, and the rest of the records table."""
    result, rows = store.result(trial), evaluated(store, trial)
    plain: dict[str, Any] = {}
    if result is not None:
        left_out = ("evaluation", "train_flops", "trial_id", "val_history")
        values = result.to_dict().items()
        plain = {k: v for k, v in values if k not in left_out and v is not None}
        plain |= {f"val/loss_at_{row['n_loops']}_loops": row["val_loss"] for row in rows}
    outcome = outcome_columns(store, trial)
    record = None if outcome is None else outcome | {"evaluation": rows}
    return plain | {"record": record}


def _outcome_digest(store: Store, trial: Trial) -> str:
    report = store.report(trial.trial_id)
    attempts = None if report is None else report.attempts or None
    outcome = {"attempts": attempts, "columns": outcome_columns(store, trial)}
    return digest(outcome | {"evaluation": evaluated(store, trial)})
