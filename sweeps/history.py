"""The learning curves of a sweep: metrics.jsonl of every trial that has begun, as one table."""

from __future__ import annotations

from analysis.curves import Curves
from parcae_core.errors import UserError
from parcae_core.training.metrics import read_metrics
from sweeps.store import Store

_NAMES = {
    "train/loss": "loss",
    "optim/muon_lr": "lr",
    "stability/spectral_radius": "spectral_radius",
    "stability/state_norm": "state_norm",
}


def curves_of(store: Store) -> Curves:
    """What every trial has logged so far, and the validation losses of those that have ended or measured any.

    Raises:
        UserError: when no trial has logged a step.
    """
    import pandas as pd

    parts, measured = [], []
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
        keep = {old: new for old, new in _NAMES.items() if old in frame}
        at = frame[["n_tokens"]].assign(run=run, train_flops=frame[f"flops/{rule}"])
        parts.append(at.join(frame[list(keep)].rename(columns=keep)))
        result = store.result(trial)
        for row in result.evaluation if result else ():
            if row.n_loops == trial.mean_recurrence and row.val_loss is not None:
                measured.append((run, at.n_tokens.iloc[-1], at.train_flops.iloc[-1], row.val_loss))
    if not parts:
        raise UserError(f"{store.where}: no trial has logged a step yet.")
    names = ["run", "n_tokens", "train_flops", "val_loss"]
    return Curves(
        pd.concat(parts, ignore_index=True).dropna(subset=["loss"]),
        store.where,
        pd.DataFrame(measured, columns=names) if measured else None,
    )
