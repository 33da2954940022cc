"""The learning curves of a sweep: metrics.jsonl of every trial that has begun, as one table."""

from __future__ import annotations

import math

from analysis.curves import Curves
from parcae_core.errors import UserError
from parcae_core.training.metrics import read_metrics
from sweeps.store import Store

_NAMES = {
    "train/loss": "loss",
    "val/loss": "validation",
    "optim/muon_lr": "lr",
    "stability/spectral_radius": "spectral_radius",
    "stability/state_norm": "state_norm",
}


def curves_of(store: Store) -> Curves:
    """What every trial has logged so far; without `evaluation.every` its validation loss is the end's.

    Raises:
        UserError: when no trial has logged a step.
    """
    import pandas as pd

    parts = []
    seen: set[str] = set()
    for trial in store.stored_trials():
        rule = trial.budget_rule
        rows = read_metrics(store.files(trial.trial_id).metrics)
        if not rows:
            continue
        budget = "" if trial.budget_flops is None else f", {trial.budget_flops:.3g} FLOPs"
        run = f"\u03bc {trial.mean_recurrence:g}{budget}, seed {trial.seed}".replace("e+", "e")
        if run in seen:  # arms that differ in something else
            run += f" ({trial.trial_id[:6]})"
        seen.add(run)
        frame = pd.DataFrame(rows)
        result = store.result(trial)
        if result and "val/loss" not in frame:
            losses = {r.n_loops: r.val_loss for r in result.evaluation}
            frame.loc[frame.index[-1], "val/loss"] = losses.get(trial.mean_recurrence, math.nan)
        keep = {old: new for old, new in _NAMES.items() if old in frame}
        at = frame[["n_tokens"]].assign(run=run, train_flops=frame[f"flops/{rule}"])
        parts.append(at.join(frame[list(keep)].rename(columns=keep)))
    if not parts:
        raise UserError(f"{store.where}: no trial has logged a step yet.")
    return Curves(pd.concat(parts, ignore_index=True).dropna(subset=["loss"]), store.where)
