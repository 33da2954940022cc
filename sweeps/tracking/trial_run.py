"""A trial's folder as one W&B run, id = trial_id.

metrics.jsonl and result.json are the truth and W&B is their mirror. Offline, the run is written from
them in one go when the trial has ended: W&B cannot go on with an offline run, so one written while
training would end up in as many pieces as the trial had attempts. Online, `sweeps.tracking.live` shows
the trial while it trains, and this module writes what it could not send.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcae_core.trial import Trial, trial_to_dict
from sweeps.records import evaluated, outcome_columns, planned_columns
from sweeps.storage.files import read_json
from sweeps.store import Store
from sweeps.tracking.run_folder import digest, drop_unsent, forget_runs, mark, open_run, written

if TYPE_CHECKING:
    import wandb


def mirror(store: Store, trial: Trial, *, project: str) -> str | None:
    """Write an ended trial's run offline, for `parcae sync`; what went wrong, or None.

    Repeating it writes nothing. Nothing is raised: the mirror is not the result.
    """
    folder = store.folder(trial.trial_id)
    try:
        if is_mirrored(store, trial):
            return None
        drop_unsent(folder, run_id(store, trial))
        run = begin(store, trial, project=project, mode="offline")
        log_rows(run, read_metrics(folder / "metrics.jsonl"))
        end(run, store, trial, mode="offline")
        return None
    except Exception as error:  # noqa: BLE001 - whatever W&B does, the trial's result stands
        forget_runs()
        return f"W&B offline: {type(error).__name__}: {error}"


def is_mirrored(store: Store, trial: Trial) -> bool:
    """Whether the run that belongs to this outcome has been written completely."""
    return written(store.folder(trial.trial_id)).get("of") == _outcome_digest(store, trial)


def run_id(store: Store, trial: Trial) -> str:
    """trial_id; a result taken over from another sweep is not that sweep's run, and says so."""
    said = read_json(store.folder(trial.trial_id) / "state.json") or {}
    return f"{trial.trial_id}-{store.name}" if "reused_from" in said else trial.trial_id


def begin(store: Store, trial: Trial, *, project: str, mode: str, **timeouts: float) -> wandb.Run:
    """Open a trial's run. Raises what W&B raises."""
    sweep = store.sweep or {}
    commit = (sweep.get("git_commit") or "none")[:12]
    return open_run(
        store.folder(trial.trial_id),
        run_id=run_id(store, trial),
        project=project,
        group=store.name,
        job_type="trial",
        mode=mode,
        tags=(
            sweep.get("design", "unknown"),
            f"spec-{sweep.get('spec_sha256', 'none')[:12]}",
            f"commit-{commit}",
        ),
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

    rows = store.result(trial) and evaluated(store, trial)
    if rows:
        columns = list(rows[0])
        table = wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in rows])
        run.log({"val/loops": table})
    run.summary.update(summary_of(store, trial))
    run.finish(exit_code=0 if store.result(trial) else 1)
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
    result = store.result(trial) or {}
    left_out = ("evaluation", "train_flops", "trial_id")
    plain = {k: v for k, v in result.items() if k not in left_out and v is not None}
    outcome, rows = outcome_columns(store, trial), evaluated(store, trial)
    if result:
        for row in rows:
            plain[f"val/loss_at_{row['n_loops']}_loops"] = row["val_loss"]
    record = None if outcome is None else outcome | {"evaluation": rows}
    return plain | {"record": record}


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


def _outcome_digest(store: Store, trial: Trial) -> str:
    said = read_json(store.folder(trial.trial_id) / "state.json") or {}
    outcome = {"attempts": said.get("attempts"), "columns": outcome_columns(store, trial)}
    return digest(outcome | {"evaluation": evaluated(store, trial)})
