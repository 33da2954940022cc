"""How a sweep came to its results: the learning curves of its trials, and the decisions of an adaptive one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analysis.curves import Curves, of_log
from parcae_core.errors import UserError
from parcae_core.training.metrics import read_metrics
from sweeps.decisions import decisions, end_of, table_of
from sweeps.design.spec import AdaptiveSpec, load_spec
from sweeps.store import Store

if TYPE_CHECKING:
    from analysis.figures.decisions import Decisions

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
    trials = store.stored_trials()
    store.storage.pull(store.files(t.trial_id).metrics for t in trials)
    for trial in trials:
        lines = read_metrics(store.files(trial.trial_id).metrics)
        rows = [line for line in lines if {"n_tokens", "train/loss"} <= line.keys()]
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
            frame.loc[frame.index[-1], "val/loss"] = (
                result.loss_at(trial.mean_recurrence) or math.nan
            )
        keep = {old: new for old, new in _NAMES.items() if old in frame}
        # counted here: in lines of before 2026-11-26 a curriculum's first steps cost the average
        spent = [trial.spent(line["step"])[trial.budget_rule] for line in rows]
        at = frame[["n_tokens"]].assign(run=run, train_flops=spent)
        parts.append(at.join(frame[list(keep)].rename(columns=keep)))
    if not parts:
        raise UserError(f"{store.where}: no trial has logged a step yet.")
    return of_log(pd.concat(parts, ignore_index=True), store.where)


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
