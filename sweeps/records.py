"""Trial folders -> the records table, by the contract of analysis.table.records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.table import records
from parcae_core.accounting.flops import FlopsRule
from parcae_core.data.state_reveals import StateReveals
from parcae_core.data.tokenizer import CHARACTERS
from parcae_core.trial import Trial
from sweeps.scoring.scores import Scores
from sweeps.store import Store

if TYPE_CHECKING:
    import pandas as pd


# Columns that a trial, or its cost, has under the same name
_OF_TRIAL = (
    *("trial_id", "preset", "mean_recurrence", "mean_backprop_depth", "budget_flops", "n_tokens"),
    *("n_steps", "batch_tokens", "context", "seed", "data_seed"),
)
_OF_COST = ("n_params", "n_params_core", "n_params_unrolled", "n_params_once")


def collect(store: Store) -> Path | None:
    """Write records.parquet of every trial that ended; may be repeated, also while others run.

    Returns:
        The file here, or None when no trial has ended yet.
    """
    table = records_of(store)
    if table is None:
        return None
    path = records.save(table, store.root / records.FILE_NAME)
    store.storage.push(path)
    return path


def records_of(store: Store) -> pd.DataFrame | None:
    """The table of every trial in the folder that has ended; None if none has."""
    import pandas as pd

    rows = [row for trial in store.stored_trials() for row in rows_of(store, trial)]
    if not rows:
        return None
    table = pd.DataFrame(rows)
    if "shared_steps" in table:  # else no run has begun from another
        table["shared_steps"] = table.shared_steps.fillna(0)
    return records.validate(table, where=str(store.root))


def rows_of(store: Store, trial: Trial) -> list[dict[str, Any]]:
    """A trial's rows of the table: one per evaluation; empty while it has not ended."""
    outcome = outcome_columns(store, trial)
    if outcome is None:
        return []
    common = planned_columns(trial) | {"sweep": store.name} | outcome
    return [common | row for row in evaluated(store, trial)]


def planned_columns(trial: Trial) -> dict[str, Any]:
    """What is known before a trial starts; FLOPs, steps and tokens are of the planned training."""
    model, looped = trial.model, trial.depth is not None
    return {
        **{name: getattr(trial, name) for name in _OF_TRIAL},
        **{name: getattr(trial.cost, name) for name in _OF_COST},
        "architecture": "parcae" if looped else "transformer",
        "injection": model.injection if looped else None,
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "depth_scheme": trial.depth.label if trial.depth else None,
        "flops_rule": trial.budget_rule,
        **_flops_columns(trial.cost.train_flops),
        "data_fingerprint": trial.data.content,
        "tokenizer": trial.data.tokenizer,
        "vocab_size": trial.data.vocab_size,
        "muon_lr": trial.optim.muon_lr,
        "adamw_lr": trial.optim.adamw_lr,
        **_known_columns(trial),
    }


def _known_columns(trial: Trial) -> dict[str, Any]:
    """The corpus's name, and what is known of its loss if it is generated."""
    names = ("loss_floor", "loss_by_reach", "floor_by_label")
    columns = {"corpus": trial.data.corpus} | dict.fromkeys(names)
    if trial.data.tokenizer != CHARACTERS:
        return columns
    known = StateReveals.named(trial.data.corpus).known(trial.context)
    return columns | {
        "loss_floor": known["floor"],
        "loss_by_reach": json.dumps(known["loss_by_reach"]),
        "floor_by_label": json.dumps(known["floor_by_label"]),
    }


def outcome_columns(store: Store, trial: Trial) -> dict[str, Any] | None:
    """What is known once a trial has ended; None before.

    FLOPs and tokens are of the steps made, and stand in for the planned ones.
    """
    state = store.state(trial)
    if state.state not in records.STATUSES:
        return None
    sweep = store.sweep or {}
    report, result = store.report(trial.trial_id), store.result(trial)
    # a table whose spec asked for no validation on the way has no such column
    history = () if result is None else result.val_history
    on_the_way = {} if trial.evaluation.every is None else {"val_history": json.dumps(history)}
    return {
        "status": state.state,
        "status_reason": None if state.state == "done" else state.reason,
        "diverged_step": result.step if state.state == "diverged" else None,
        **_flops_columns(trial.spent(state.step)),
        "n_tokens": state.step * trial.batch_tokens,
        "data_epochs": result.data_epochs if result else 0.0,
        "wall_s": result and result.train_s,
        "tokens_per_s": result and result.tokens_per_s,
        "device": result.device if result else "unknown",
        "torch_version": result.torch_version if result else "unknown",
        "git_commit": (report and report.git_commit) or sweep.get("git_commit"),
        "spec_sha256": (report and report.spec_sha256) or sweep.get("spec_sha256"),
        **_lineage_columns(trial, 0 if result is None else result.shared_steps),
        **on_the_way,
    }


def _lineage_columns(trial: Trial, shared_steps: int) -> dict[str, Any]:
    """From which trial a branch was to begin, and what it took over from there; a table without
    branches has none of them."""
    if trial.parent is None and not shared_steps:
        return {}
    parent = None if trial.parent is None else trial.parent.trial_id
    return {"parent_trial_id": parent, "shared_steps": shared_steps}


def _flops_columns(train_flops: dict[FlopsRule, float]) -> dict[str, float]:
    return {f"train_flops_{rule}": flops for rule, flops in train_flops.items()}


def evaluated(store: Store, trial: Trial) -> list[dict[str, Any]]:
    """One row per evaluation; a single empty one, at mean_recurrence, when there is none."""
    result = store.result(trial)
    scores = Scores.read(store.folder(trial.trial_id))
    if result is None or not result.evaluation:
        return [
            {"n_loops": trial.mean_recurrence, "val_loss": None, "val_bpb": None, "val_tokens": 0}
        ]
    return [
        {
            "n_loops": row.n_loops,
            "val_loss": row.val_loss,
            "val_bpb": row.val_bpb,
            "val_tokens": row.n_tokens,
            "val_loss_by_label": json.dumps(row.by_label) if row.by_label else None,
            **(scores.columns(row.n_loops) if scores else {}),
        }
        for row in result.evaluation
    ]
