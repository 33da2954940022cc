"""How a sweep came to its results: the learning curves of its trials, and the decisions of an adaptive one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.curves import Curves
from parcae_core.errors import UserError
from parcae_core.training.metrics import read_metrics
from sweeps.decisions import decisions, end_of, table_of
from sweeps.design.spec import AdaptiveSpec, load_spec
from sweeps.store import Store

if TYPE_CHECKING:
    from analysis.figures.decisions import Decisions

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


def decisions_of(store: Store) -> Decisions | None:
    """What an adaptive sweep has decided so far; None of any other."""
    lines = decisions(store.root)
    spec = load_spec(store.root / "spec.yaml") if lines else None
    if not isinstance(spec, AdaptiveSpec):
        return None
    from analysis.figures.decisions import Decisions
    from sweeps.design.forecasting import candidates_at_once

    planned = set((store.sweep or {}).get("trials", ()))
    candidates = [t for t in store.stored_trials() if t.trial_id in planned]
    return Decisions(
        source=store.where,
        target=spec.target,
        rows=tuple(table_of(lines)),
        ended=end_of(lines),
        wanted=spec.half_width,
        at_once=candidates_at_once(candidates, spec),
    )
