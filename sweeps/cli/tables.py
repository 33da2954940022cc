"""What `parcae plan` and `parcae status` print, as plain data and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parcae_core.cpus import usable_cpus
from parcae_core.result import TrainResult
from parcae_core.trial import Trial
from sweeps.design.estimate import duration, longest_first, makespan, rate_of
from sweeps.design.plan import Plan, short
from sweeps.design.trunks import flops_to_make
from sweeps.reports import FINISHED
from sweeps.store import Store, TrialState

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LAST_LINES = 4  # of a failure's traceback


def _console_and_table(title: str, numbers: Sequence[str]) -> tuple[Console, Table]:
    from rich.console import Console  # --json needs no rich
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 140  # a pipe has no width; never cut numbers
    table = Table(title=title, title_justify="left")
    for column in ("trial", "state", "preset"):
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return console, table


# ---- parcae plan ---------------------------------------------------------------------------------


def plan_data(
    plan: Plan,
    store: Store,
    *,
    cpus: int | None = None,
    gpus: int = 0,
    flops_per_s: float | None = None,
    price_per_gpu_hour: float | None = None,
    device: str | None = None,
    mfu: float | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan as plain data: one entry per trial, totals, and what the times rest on.

    Args:
        cpus, gpus: of the cluster that the makespan is for.
        flops_per_s: of one trial, by the exact rule, when the user knows it.
        device, mfu: see `sweeps.design.estimate.rate_of`.
        notes: lines on how the plan came to its resources.
    """
    started = store.sweep is not None
    rate = rate_of(plan.trials, store if started else None, flops_per_s, device=device, mfu=mfu)
    trials, left = [], []
    for trial in plan.trials:
        state = store.state(trial).state if started else "planned"
        if state not in FINISHED:
            left.append(trial)
        memory = trial.cost.memory
        trials.append(
            {
                "trial_id": trial.trial_id,
                "state": state,
                "preset": trial.preset,
                "mean_recurrence": trial.mean_recurrence,
                "mean_backprop_depth": trial.mean_backprop_depth,
                "budget_flops": trial.budget_flops,
                "n_tokens": trial.n_tokens,
                "n_steps": trial.n_steps,
                "batch_tokens": trial.batch_tokens,
                "seed": trial.seed,
                "n_params": trial.cost.n_params,
                "state_bytes": memory.state,
                "activation_bytes_per_sequence": memory.per_sequence,
                "peak_bytes": memory.peak(trial.batch_sequences),  # whole batch at a time
                "peak_bytes_one_sequence": memory.peak(1),
                "train_flops": trial.cost.train_flops,  # as if it were a run of its own
                "parent": None if trial.parent is None else trial.parent.trial_id,
                "shared_steps": trial.shared_steps,
                "own_flops": {rule: trial.own_flops(rule) for rule in trial.cost.train_flops},
                "muon_lr": trial.optim.muon_lr,
                "estimated_s": rate.seconds(trial),
                "cpus": trial.resources.cpus,
                "gpus": trial.resources.gpus,
            }
        )
    cpus = cpus or usable_cpus()
    slots = _slots(plan.trials, cpus, gpus)
    seconds = [rate.seconds(t) for t in longest_first(left)]
    known = rate.flops_per_s is not None
    # a branch cannot end before its trunk and it have made all steps, one after the other
    longest = max((rate.seconds(t, separate=True) or 0.0 for t in left), default=0.0)
    gpu_hours = sum(rate.seconds(t) * t.resources.gpus for t in left) / 3600 if known else None
    first = plan.trials[0].data
    return {
        "name": plan.name,
        "design": plan.spec.design,
        "spec_sha256": plan.spec.sha256,
        "data": {
            "corpus": first.corpus,
            "fingerprint": first.fingerprint,
            "tokenizer": first.tokenizer,
        },
        "trials": trials,
        "totals": {
            "trials": len(trials),
            "finished": len(trials) - len(left),
            "n_tokens": sum(t.n_tokens for t in plan.trials),
            "train_flops_paper": sum(t["train_flops"]["paper"] for t in trials),
            "train_flops_exact": sum(t["train_flops"]["exact"] for t in trials),
            "own_flops_paper": flops_to_make(plan.trials, "paper"),
            "own_flops_exact": flops_to_make(plan.trials, "exact"),
            "left_s": sum(seconds) if known else None,
            "makespan_s": max(makespan(seconds, slots), longest) if known and slots else None,
            "cpus": cpus,
            "gpus": gpus,
            "gpu_hours": gpu_hours,
            "price": None
            if price_per_gpu_hour is None or gpu_hours is None
            else price_per_gpu_hour * gpu_hours,
        },
        "rate": {"flops_per_s": rate.flops_per_s, "source": rate.source},
        "notes": list(notes),
    }


def _slots(trials: Sequence[Trial], cpus: int, gpus: int) -> int:
    """Trials that fit side by side, by the largest request."""
    most_cpus = max(t.resources.cpus for t in trials)
    most_gpus = max(t.resources.gpus for t in trials)
    by_cpu = int(cpus // most_cpus)
    return min(by_cpu, int(gpus // most_gpus)) if most_gpus else by_cpu


def print_plan(data: dict[str, Any]) -> None:
    """The plan for people, on stdout."""
    console, table = _console_and_table(
        f"{data['name']}: {data['design']}",
        ("budget", "mu_rec", "seed", "steps", "tokens", "FLOPs paper", "exact", "est. time"),
    )
    for t in data["trials"]:
        table.add_row(
            t["trial_id"],
            t["state"],
            t["preset"],
            "-" if t["budget_flops"] is None else short(t["budget_flops"]),
            str(t["mean_recurrence"]),
            str(t["seed"]),
            f"{t['n_steps']:,}",
            short(t["n_tokens"]),
            short(t["train_flops"]["paper"]),
            short(t["train_flops"]["exact"]),
            "?" if t["estimated_s"] is None else duration(t["estimated_s"]),
        )
    console.print(table)
    totals, source = data["totals"], data["data"]
    console.print(
        f"{totals['trials']} trials, {totals['finished']} finished; {short(totals['n_tokens'])} tokens, "
        f"{short(totals['train_flops_paper'])} FLOPs (paper), {short(totals['train_flops_exact'])} (exact)",
        highlight=False,
    )
    if totals["own_flops_exact"] < totals["train_flops_exact"]:
        own, separate = totals["own_flops_paper"], totals["train_flops_paper"]
        console.print(
            f"trunks: {short(own)} FLOPs are made, {1 - own / separate:.0%} fewer than by separate runs "
            f"({short(totals['own_flops_exact'])} exact); the budgets are those of separate runs",
            highlight=False,
        )
    if totals["makespan_s"] is not None:
        where = f"{totals['cpus']} CPUs" + (f" and {totals['gpus']} GPUs" * bool(totals["gpus"]))
        console.print(
            f"about {duration(totals['makespan_s'])} on {where} for what is left "
            f"({duration(totals['left_s'])} of work)",
            highlight=False,
        )
    elif totals["left_s"] is not None:
        console.print(f"about {duration(totals['left_s'])} of work is left", highlight=False)
    if totals["gpu_hours"]:
        price = "" if totals["price"] is None else f", {totals['price']:,.2f} at the given price"
        console.print(f"{totals['gpu_hours']:,.1f} GPU-hours{price}", highlight=False)
    console.print(_memory_line(data["trials"]), highlight=False)
    for note in data["notes"]:
        console.print(note, highlight=False)
    console.print(f"time {data['rate']['source']}", highlight=False)
    console.print(
        f"data {source['corpus']} as {source['tokenizer']}, fingerprint {source['fingerprint'][:12]}",
        highlight=False,
    )


def _memory_line(trials: list[dict[str, Any]]) -> str:
    most = max(trials, key=lambda t: t["peak_bytes"])
    gib, mib = 2**30, 2**20
    return (
        f"memory per trial about {most['peak_bytes'] / gib:.2g} GiB at most with the whole batch at a "
        f"time, {most['peak_bytes_one_sequence'] / gib:.2g} GiB with one sequence: "
        f"{most['state_bytes'] / gib:.2g} GiB for weights, gradients and optimiser, "
        f"{most['activation_bytes_per_sequence'] / mib:.0f} MiB a sequence"
    )


# ---- parcae status -------------------------------------------------------------------------------


def status_data(store: Store) -> dict[str, Any]:
    """Every trial's state as plain data."""
    order = (store.sweep or {}).get("trials", [])
    trials = []
    made = {"separate": 0.0, "own": 0.0}
    for trial in store.stored_trials():
        state = store.state(trial)
        result = store.result(trial)
        shared = _shared_steps(trial, state, result)
        per_step = trial.train_flops("paper") / trial.n_steps
        made["separate"] += per_step * state.step
        made["own"] += per_step * (state.step - shared)
        losses = {r.n_loops: r.val_loss for r in result.evaluation} if result else {}
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
                "parent": None if trial.parent is None else trial.parent.trial_id,
                "shared_steps": shared,
                "train_loss": state.loss,
                "val_loss": losses.get(trial.mean_recurrence),
                "tokens_per_s": state.tokens_per_s,
                "attempts": state.attempts,
                "lost_workers": state.lost_workers,
                "lost_reason": state.lost_reason,
                "reason": state.reason or "; ".join(result.notes if result else ()) or None,
                "error": _last_lines(store, trial.trial_id) if state.state == "failed" else None,
            }
        )
    listed = {t["trial_id"] for t in trials}
    damaged = {i: problem for i, problem in store.problems().items() if i not in listed}
    counts = Counter(t["state"] for t in trials) + Counter({"damaged": len(damaged)})
    return {
        "name": store.name,
        "folder": store.where,
        "counts": dict(counts),
        "made_flops_paper": made,
        "trials": trials,
        "damaged": damaged,
    }


def _shared_steps(trial: Trial, state: TrialState, result: TrainResult | None) -> int:
    """Steps of a trial that its trunk made: as its result says, before that as planned."""
    if result is not None:
        return result.shared_steps
    return min(trial.shared_steps, state.step)


def print_status(data: dict[str, Any]) -> None:
    """The states for people, on stdout."""
    console, table = _console_and_table(
        f"{data['name']}: {data['folder']}",
        ("budget", "mu_rec", "seed", "step", "train loss", "val loss", "tokens/s", "tries"),
    )
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
        if t["lost_workers"] and (t["reason"] or "").find(t["lost_reason"]) < 0:
            lost = f"{t['lost_workers']} workers lost, the last: {t['lost_reason']}"
            console.print(f"{t['trial_id']}: {lost}", highlight=False, markup=False)
        for line in t["error"] or []:
            console.print(f"    {line}", highlight=False, markup=False)
    for trial_id, problem in data["damaged"].items():
        console.print(f"{trial_id}: damaged: {problem}", highlight=False, markup=False)
    console.print(", ".join(f"{n} {s}" for s, n in data["counts"].items()), highlight=False)
    made = data["made_flops_paper"]
    if made["own"] < made["separate"]:
        console.print(
            f"trunks: {short(made['own'])} FLOPs made (paper); separate runs would have made "
            f"{short(made['separate'])}",
            highlight=False,
        )


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
