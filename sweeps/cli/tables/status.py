"""What `parcae status` prints, as plain data and as tables for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from parcae_core.result import TrainResult
from parcae_core.trial import Trial
from sweeps.cli.tables.columns import (
    Column,
    Row,
    budget_of,
    column,
    console_for_people,
    flops,
    grouped,
    listed,
    print_table,
)
from sweeps.decisions import decisions, end_of, left_out_words, table_of, words
from sweeps.reports import StateReport
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
        shared = _shared_steps(trial, state, result)
        spent = trial.spent(state.step)["paper"]
        made["separate"] += spent
        made["own"] += spent - trial.spent(shared)["paper"]
        loss = result and result.loss_at(trial.mean_recurrence)
        if state.state == "done" and loss is not None:
            ended.append((trial, loss))
        trials.append(
            {
                "trial_id": trial.trial_id,
                "state": state.state,
                "in_plan": trial.trial_id in order,
                "preset": trial.preset,
                "mean_recurrence": trial.mean_recurrence,
                "budget_flops": trial.budget_flops,
                "n_tokens": trial.n_tokens,
                "seed": trial.seed,
                "step": state.step,
                "n_steps": trial.n_steps,
                "parent": None if trial.parent is None else trial.parent.trial_id,
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
    counts["damaged"] = len(
        damaged.keys() - listed
    )  # of the others a result is: they will run again
    return {
        "name": store.name,
        "folder": store.where,
        "counts": dict(+counts),
        "made_flops_paper": made,
        "design": lines,
        "estimate": _estimate(lines, ended),
        "trials": trials,
        "damaged": damaged,
    }


def _shared_steps(trial: Trial, state: StateReport, result: TrainResult | None) -> int:
    """Steps of a trial that its trunk made: as its result says, before that as planned."""
    if result is not None:
        return result.shared_steps
    return min(trial.shared_steps, state.step)


def _estimate(lines: list[Row], ended: list[tuple[Trial, float]]) -> Row | None:
    """What is known of an adaptive sweep's target since its last decision; else of gamma_mu, by what has ended."""
    if lines:
        return lines[-1]["estimate"]
    if len(ended) < _TELLING:
        return None
    from sweeps.design.forecasting import estimate_now  # brings SciPy

    return estimate_now(ended)


def _design_columns(lines: list[Row]) -> list[Column]:
    """Decisions of an adaptive sweep: which trial and why, and how narrow the interval was by then."""
    made = table_of(lines)
    targets = [line["estimate"]["target"] for line in lines if line["estimate"]]
    return [
        column("chosen", made, lambda r: r["trial_id"] or "", left=True),
        column("budget", made, lambda r: budget_of(r) if r["trial_id"] else ""),
        column("mu_rec", made, lambda r: str(r["mean_recurrence"] or "")),
        column("seed", made, lambda r: "" if r["seed"] is None else str(r["seed"]), 2),
        column("because", made, lambda r: r["reason"], left=True),
        column("runs", made, lambda r: str(r["n_runs"] or ""), 3),
        column("FLOPs", made, lambda r: flops(r["flops"]) if r["flops"] else ""),
        column(_half_name(targets), made, _half),
    ]


def _half(row: Row) -> str:
    if row["half"] is None:
        return "" if row["n_runs"] is None else "open"
    return f"{row['half']:.2g}"


def _half_name(targets: list[str]) -> str:
    """Of half an interval; a logarithm's for mu@C and loss@C."""
    target = targets[0] if targets else ""
    return f"+- log {target}" if "@" in target else f"+- {target}"


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
        n = sum(
            "trial_id" in line for line in lines
        )  # the last line of a finished sweep is its end
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
        column("budget", groups, lambda g: budget_of(g[0])),
        column("preset", groups, lambda g: g[0]["preset"], left=True),
        column("mu_rec", groups, lambda g: listed(t["mean_recurrence"] for t in g), 2, left=True),
        column("trials", groups, lambda g: str(len(g)), stays=True),
        *map(state, dict.fromkeys(t["state"] for t in trials)),
        column("steps", groups, steps, 1),
        column("best val loss", groups, best),
    ]


def _status_by_trial(trials: list[Row]) -> list[Column]:
    return [
        column("trial", trials, lambda t: t["trial_id"], left=True),
        column("state", trials, lambda t: t["state"] + " (kept)" * (not t["in_plan"]), left=True),
        column("preset", trials, lambda t: t["preset"], 4, left=True),
        column("budget", trials, budget_of),
        column("mu_rec", trials, lambda t: str(t["mean_recurrence"])),
        column("seed", trials, lambda t: str(t["seed"])),
        column("step", trials, lambda t: f"{t['step']:,}/{t['n_steps']:,}"),
        column("train loss", trials, lambda t: _number(t["train_loss"], ".4f"), 3),
        column("val loss", trials, lambda t: _number(t["val_loss"], ".4f")),
        column("tokens/s", trials, lambda t: _number(t["tokens_per_s"], ",.0f"), 2),
        column("tries", trials, lambda t: str(t["attempts"]), 5),
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
