"""What `parcae status` prints, as plain data and as tables for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from parcae_core.errors import UserError
from parcae_core.trial import Trial
from sweeps.cli.tables.columns import (
    Column,
    Row,
    budget_of,
    console_for_people,
    fields_of,
    flops,
    grouped,
    listed,
    print_table,
)
from sweeps.decisions import decisions, end_of, left_out_words, table_of, words
from sweeps.design.spec import load_spec
from sweeps.store import Store

LAST_LINES = 4  # of a failure's traceback
_LAST_DECISIONS = 10
_TELLING = 7  # trials that have ended, before a law of five parameters is fitted to them


def status_data(store: Store) -> dict[str, Any]:
    """Every trial's state as plain data."""
    order = (store.sweep or {}).get("trials", [])
    trials = []
    made = {"separate": 0.0, "own": 0.0}
    ended: list[tuple[Trial, float]] = []
    lines = decisions(store.root)
    chosen = {line.get("trial_id") for line in lines}
    for trial in store.stored_trials():
        state = store.state(trial)
        if lines and trial.trial_id not in chosen and state.state == "planned":
            continue  # a candidate of an adaptive sweep
        result = store.result(trial)
        # steps that its trunk made: as its result says, before that as planned
        shared = result.shared_steps if result else min(trial.shared_steps, state.step)
        spent = trial.spent(state.step)["paper"]
        made["separate"] += spent
        made["own"] += spent - trial.spent(shared)["paper"]
        loss = result and result.loss_at(trial.mean_recurrence)
        if state.state == "done" and loss is not None:
            ended.append((trial, loss))
        trials.append(
            fields_of(trial)
            | {
                "state": state.state,
                "in_plan": trial.trial_id in order,
                "step": state.step,
                "shared_steps": shared,
                "train_loss": state.loss,
                "val_loss": loss,
                "tokens_per_s": state.tokens_per_s,
                "attempts": state.attempts,
                "lost_workers": state.lost_workers,
                "lost_reason": state.lost_reason,
                "reason": state.reason or "; ".join(result.notes if result else ()) or None,
                "error": _last_lines(store, trial.trial_id) if state.state == "failed" else None,
            }
        )
    listed = {t["trial_id"] for t in trials}
    damaged = store.problems()
    counts = Counter(t["state"] for t in trials)
    # of the listed ones a result is damaged: they will run again
    counts["damaged"] = len(damaged.keys() - listed)
    return {
        "name": store.name,
        "folder": store.where,
        "counts": dict(+counts),
        "made_flops_paper": made,
        "design": lines,
        "estimate": _estimate(lines, ended, store),
        "trials": trials,
        "damaged": damaged,
    }


def _estimate(lines: list[Row], ended: list[tuple[Trial, float]], store: Store) -> Row | None:
    """What is known of an adaptive sweep's target since its last decision; else of gamma_mu, by what has ended."""
    if lines:
        return lines[-1]["estimate"]
    if len(ended) < _TELLING:
        return None
    from sweeps.design.forecasting import estimate_now, own_budgets  # brings SciPy

    spec = store.root / "spec.yaml"
    own = spec.exists() and (store.sweep or {}).get("design") == "list"
    try:
        return estimate_now(ended, over=own_budgets(load_spec(spec)) if own else None)
    except UserError:  # a damaged spec: over other budgets the exponent would be another
        return None


def _design_columns(lines: list[Row]) -> list[Column]:
    """Decisions of an adaptive sweep: which trial and why, and how narrow the interval was by then."""
    made = table_of(lines)
    target = next((line["estimate"]["target"] for line in lines if line["estimate"]), "")
    half = f"+- {'log ' * ('@' in target)}{target}"  # of mu@C and loss@C a logarithm's
    return [
        Column("chosen", [r["trial_id"] or "" for r in made], left=True),
        Column("budget", [budget_of(r) if r["trial_id"] else "" for r in made]),
        Column("mu_rec", [str(r["mean_recurrence"] or "") for r in made]),
        Column("seed", ["" if r["seed"] is None else str(r["seed"]) for r in made], 2),
        Column("because", [r["reason"] for r in made], left=True),
        Column("runs", [str(r["n_runs"] or "") for r in made], 3),
        Column("FLOPs", [flops(r["flops"]) if r["flops"] else "" for r in made]),
        Column(half, [_half(r) for r in made]),
    ]


def _half(row: Row) -> str:
    if row["half"] is None:
        return "" if row["n_runs"] is None else "open"
    return f"{row['half']:.2g}"


def goes_on(data: Row) -> bool:
    """Whether a sweep, by its status, has trials that are to end or to be chosen."""
    choosing = bool(data["design"]) and not end_of(data["design"])
    return choosing or not data["counts"].keys().isdisjoint(("planned", "running"))


def print_status(data: dict[str, Any], *, every_trial: bool = False) -> None:
    """The states for people, on stdout: a row per budget and one per trial at work, or one per trial."""
    console, trials = console_for_people(), data["trials"]
    title = f"{data['name']}: {data['folder']}"
    if every_trial:
        print_table(console, title, _status_by_trial(trials))
    else:
        print_table(console, title, _status_by_budget(trials))
        if running := [t for t in trials if t["state"] == "running"]:
            print_table(console, f"{len(running)} running", _status_by_trial(running))
    for t in trials:
        if t["reason"]:
            console.print(f"{t['trial_id']}: {t['reason']}")
        why = t["lost_reason"] or "why is not known"
        if t["lost_workers"] and why not in (t["reason"] or ""):
            lost = f"{t['lost_workers']} workers lost, the last: {why}"
            console.print(f"{t['trial_id']}: {lost}")
        for line in t["error"] or []:
            console.print(f"    {line}")
    said = {t["trial_id"] for t in trials if t["reason"]}
    for trial_id, problem in data["damaged"].items():
        if trial_id not in said:
            console.print(f"{trial_id}: damaged: {problem}")
    if lines := data["design"]:
        shown = lines if every_trial else lines[-_LAST_DECISIONS:]
        left_out = f", the last {len(shown)} here, all with --trials" * (len(shown) < len(lines))
        # the last line of a finished sweep is its end
        n = sum("trial_id" in line for line in lines)
        print_table(console, f"{n} decisions{left_out}", _design_columns(shown))
    console.print(", ".join(f"{n} {s}" for s, n in data["counts"].items()))
    if now := data["estimate"]:
        spent = f"{now['n_runs']} runs of {flops(now['flops'])} FLOPs"
        console.print(f"{words(now)} by {spent}, from the training law")
    for sentence in left_out_words(data["design"][-1]) if data["design"] else ():
        console.print(sentence)
    if why := end_of(data["design"]):
        console.print(f"the design has ended: {why}")
    made = data["made_flops_paper"]
    if made["own"] < made["separate"]:
        console.print(
            f"trunks: {flops(made['own'])} FLOPs made (paper); separate runs would have made "
            f"{flops(made['separate'])}"
        )


def _status_by_budget(trials: list[Row]) -> list[Column]:
    groups = grouped(trials)

    def state(name: str) -> Column:
        found = [sum(t["state"] == name for t in g) for g in groups]
        return Column(name, [str(n) if any(found) else "" for n in found])

    def best(group: list[Row]) -> str:
        done = [t for t in group if t["val_loss"] is not None]
        least = min(done, key=lambda t: t["val_loss"], default=None)
        return "-" if least is None else f"{least['val_loss']:.4f} at {least['mean_recurrence']}"

    def steps(group: list[Row]) -> str:
        return f"{sum(t['step'] for t in group):,}/{sum(t['n_steps'] for t in group):,}"

    return [
        Column("budget", [budget_of(g[0]) for g in groups]),
        Column("preset", [g[0]["preset"] for g in groups], left=True),
        Column("mu_rec", [listed(t["mean_recurrence"] for t in g) for g in groups], 2, left=True),
        Column("trials", [str(len(g)) for g in groups], stays=True),
        *map(state, dict.fromkeys(t["state"] for t in trials)),
        Column("steps", [steps(g) for g in groups], 1),
        Column("best val loss", [best(g) for g in groups]),
    ]


def _status_by_trial(trials: list[Row]) -> list[Column]:
    return [
        Column("trial", [t["trial_id"] for t in trials], left=True),
        Column("state", [t["state"] + " (kept)" * (not t["in_plan"]) for t in trials], left=True),
        Column("preset", [t["preset"] for t in trials], 4, left=True),
        Column("budget", [budget_of(t) for t in trials]),
        Column("mu_rec", [str(t["mean_recurrence"]) for t in trials]),
        Column("seed", [str(t["seed"]) for t in trials]),
        Column("step", [f"{t['step']:,}/{t['n_steps']:,}" for t in trials]),
        Column("train loss", [_number(t["train_loss"], ".4f") for t in trials], 3),
        Column("val loss", [_number(t["val_loss"], ".4f") for t in trials]),
        Column("tokens/s", [_number(t["tokens_per_s"], ",.0f") for t in trials], 2),
        Column("tries", [str(t["attempts"]) for t in trials], 5),
    ]


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def _last_lines(store: Store, trial_id: str) -> list[str]:
    path = store.folder(trial_id) / "error.txt"
    if not path.exists():
        return []
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror})"]
    return [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
