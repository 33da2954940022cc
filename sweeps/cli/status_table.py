"""What `parcae status` prints."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sweeps.design.plan import short
from sweeps.store import Store

LAST_LINES = 4  # of a failure's traceback


def as_data(store: Store) -> dict[str, Any]:
    """Every trial's state as plain data."""
    order = (store.sweep or {}).get("trials", [])
    trials = []
    for trial in store.stored_trials():
        state = store.state(trial)
        result = store.result(trial) or {}
        losses = {r["n_loops"]: r["val_loss"] for r in result.get("evaluation") or []}
        trials.append(
            {
                "trial_id": trial.trial_id,
                "state": state.state,
                "in_plan": trial.trial_id in order,
                "preset": trial.preset,
                "mean_recurrence": trial.mean_recurrence,
                "budget_flops": trial.budget_flops,
                "seed": trial.seed,
                "step": state.step,
                "n_steps": trial.n_steps,
                "train_loss": state.loss,
                "val_loss": losses.get(trial.mean_recurrence),
                "tokens_per_s": state.tokens_per_s,
                "attempts": state.attempts,
                "reason": state.reason,
                "error": _last_lines(store, trial.trial_id) if state.state == "failed" else None,
            }
        )
    return {
        "name": store.name,
        "folder": store.where,
        "counts": dict(Counter(t["state"] for t in trials)),
        "trials": trials,
    }


def print_table(data: dict[str, Any]) -> None:
    """The states for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 140
    table = Table(title=f"{data['name']}: {data['folder']}", title_justify="left")
    for column in ("trial", "state", "preset"):
        table.add_column(column, no_wrap=True)
    for column in (
        "budget",
        "mu_rec",
        "seed",
        "step",
        "train loss",
        "val loss",
        "tokens/s",
        "tries",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for t in data["trials"]:
        table.add_row(
            t["trial_id"],
            t["state"] if t["in_plan"] else f"{t['state']} (kept)",
            t["preset"],
            "-" if t["budget_flops"] is None else short(t["budget_flops"]),
            str(t["mean_recurrence"]),
            str(t["seed"]),
            f"{t['step']}/{t['n_steps']}",
            _number(t["train_loss"], ".4f"),
            _number(t["val_loss"], ".4f"),
            _number(t["tokens_per_s"], ",.0f"),
            str(t["attempts"]),
        )
    console.print(table)
    for t in data["trials"]:
        if t["reason"]:
            console.print(f"{t['trial_id']}: {t['reason']}", highlight=False, markup=False)
        for line in t["error"] or []:
            console.print(f"    {line}", highlight=False, markup=False)
    console.print(", ".join(f"{n} {s}" for s, n in data["counts"].items()), highlight=False)


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def _last_lines(store: Store, trial_id: str) -> list[str]:
    path = store.folder(trial_id) / "error.txt"
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line.strip()][-LAST_LINES:]
