"""Lines about a trial for the person who watches a run; free of Ray."""

from __future__ import annotations

from parcae_core.trial import Trial
from sweeps.design.plan import short
from sweeps.store import Store


def label(trial: Trial) -> str:
    """A trial by its id and what its neighbours differ in."""
    budget = f" C={short(trial.budget_flops)}" if trial.budget_flops else ""
    seed = f" seed={trial.seed}" if trial.seed else ""
    return f"{trial.trial_id}{budget} mu={trial.mean_recurrence}{seed}"


def ended_line(store: Store, trial: Trial) -> str | None:
    """How a trial ended, read from the store; None while it has not."""
    state = store.state(trial)
    if state.state in ("failed", "diverged", "stopped"):
        return f"{label(trial)}: {state.state}: {state.reason}"
    if state.state == "done" and (result := store.result(trial)):
        loss = {r.n_loops: r.val_loss for r in result.evaluation}
        return f"{label(trial)}: done, val_loss {loss[trial.mean_recurrence]:.4f}"
    return None
