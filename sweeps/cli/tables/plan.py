"""What `parcae plan` prints, as plain data and as a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from parcae_core.cpus import usable_cpus
from parcae_core.trial import DataConfig, Trial
from sweeps.cli.tables.columns import (
    Column,
    Row,
    budget_of,
    console_for_people,
    count,
    digits,
    fields_of,
    flops,
    grouped,
    listed,
    print_table,
    span,
)
from sweeps.design.corpora import UNREAD
from sweeps.design.estimate import (
    duration,
    longest_first,
    makespan,
    rate_of,
    validation_flops,
)
from sweeps.design.plan import Plan
from sweeps.reports import FINISHED
from sweeps.runner.cluster.placement import fit, side_by_side
from sweeps.store import Store

if TYPE_CHECKING:
    from rich.console import Console


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
    tokens: float | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan as plain data: one entry per trial, totals, and what the times rest on.

    Args:
        cpus, gpus: of the cluster that the makespan is for; without cpus, what its GPUs need.
        flops_per_s: of one trial, by the exact rule, when the user knows it.
        device, mfu: see `sweeps.design.estimate.rate_of`.
        tokens: of the corpus's train split, when the user knows them.
        notes: lines on how the plan came to its resources.
    """
    started = store.sweep is not None
    rate = rate_of(
        plan.trials, store.result if started else None, flops_per_s, device=device, mfu=mfu
    )
    trials, left = [], []
    corpora = {c.config: c for c in plan.corpora}
    read: dict[Any, tuple[float | None, str]] = {}  # by corpus and context
    for trial in plan.trials:
        key = trial.data, trial.context
        if key not in read and trial.data in corpora:
            read[key] = corpora[trial.data].train_tokens(
                trial.context, store.storage.data_root, tokens
            )
        size = read.get(key, (None, ""))[0]
        state = store.state(trial).state if started else "planned"
        if state not in FINISHED:
            left.append(trial)
        memory = trial.cost.memory
        trials.append(
            fields_of(trial, "mean_backprop_depth", "batch_tokens", "context", "shared_steps")
            | {
                "state": state,
                "epochs": trial.n_tokens / size if size else None,
                "n_params": trial.cost.n_params,
                "state_bytes": memory.state,
                "activation_bytes_per_sequence": memory.per_sequence,
                # of each process, with its whole share of the batch at a time
                "peak_bytes": memory.peak(trial.batch_sequences // trial.resources.processes),
                "peak_bytes_one_sequence": memory.peak(1),
                "train_flops": trial.cost.train_flops,  # as if it were a run of its own
                "own_flops": {rule: trial.own_flops(rule) for rule in trial.cost.train_flops},
                "muon_lr": trial.optim.muon_lr,
                "estimated_s": rate.seconds(trial),
                "cpus": trial.resources.cpus,
                "gpus": trial.resources.gpus,
                "processes": trial.resources.processes,
            }
        )
    cpus = cpus or _cpus_beside(plan.trials, gpus)
    slots = side_by_side(plan.trials, cpus, gpus)
    seconds = [rate.seconds(t) for t in longest_first(left)]
    known = rate.flops_per_s is not None
    # a branch cannot end before its trunk and it have made all steps, one after the other
    longest = max((rate.seconds(t, separate=True) or 0.0 for t in left), default=0.0)
    gpu_hours = sum(rate.seconds(t) * t.resources.gpus for t in left) / 3600 if known else None
    keys = dict.fromkeys((t.data, t.context) for t in plan.trials)
    texts = [_data(*key, *read.get(key, (None, "unknown"))) for key in keys]
    return {
        "name": plan.name,
        "design": plan.spec.design,
        "spec_sha256": plan.spec.sha256,
        "data": texts[0],
        "texts": texts,
        "trials": trials,
        "totals": {
            "trials": len(trials),
            "finished": len(trials) - len(left),
            "n_tokens": sum(t.n_tokens for t in plan.trials),
            "train_flops_paper": sum(t["train_flops"]["paper"] for t in trials),
            "train_flops_exact": sum(t["train_flops"]["exact"] for t in trials),
            "own_flops_paper": sum(t["own_flops"]["paper"] for t in trials),
            "own_flops_exact": sum(t["own_flops"]["exact"] for t in trials),
            "validation_flops": sum(map(validation_flops, plan.trials)),
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


def _data(config: DataConfig, context: int, size: float | None, counted: str) -> Row:
    assumed = config.fingerprint == UNREAD
    return {
        "corpus": config.corpus,
        "fingerprint": None if assumed else config.fingerprint,
        "tokenizer": config.tokenizer,
        "context": context,
        "assumed": assumed,  # then no trial has its final id
        "train_tokens": None if size == math.inf else size,
        "train_tokens_from": counted,
    }


def _cpus_beside(trials: Sequence[Trial], gpus: int) -> int:
    """This machine's cores; of a cluster whose GPUs alone are given, as many as they need beside them."""
    largest = max(trials, key=lambda t: t.resources.gpus).resources
    if not (gpus and largest.gpus):
        return usable_cpus()
    return math.ceil(largest.cpus * fit(largest.gpus, gpus, "GPU")) or usable_cpus()


def print_plan(data: dict[str, Any], *, every_trial: bool = False) -> None:
    """The plan for people, on stdout: a row per budget, or per trial."""
    console, totals = console_for_people(), data["totals"]
    columns = _plan_by_trial(data) if every_trial else _plan_by_budget(data)
    what = f"{data['name']}: {data['design']}, {totals['trials']} trials"
    print_table(console, what, columns)
    console.print(
        f"{totals['trials']} trials, {totals['finished']} finished; {count(totals['n_tokens'])} tokens, "
        f"{flops(totals['train_flops_paper'])} FLOPs (paper), "
        f"{flops(totals['train_flops_exact'])} (exact)"
    )
    if totals["own_flops_exact"] < totals["train_flops_exact"]:
        own, separate = totals["own_flops_paper"], totals["train_flops_paper"]
        console.print(
            f"trunks: {flops(own)} FLOPs are made (paper), {1 - own / separate:.0%} fewer than by separate "
            f"runs; {flops(totals['own_flops_exact'])} (exact)"
        )
    if totals["validation_flops"]:
        share = totals["validation_flops"] / totals["own_flops_exact"]
        console.print(
            f"validation on the way: {flops(totals['validation_flops'])} FLOPs more (exact), "
            f"{100 * share:.2g} % of the training's"
        )
    if totals["makespan_s"] is not None:
        where = f"{totals['cpus']} CPUs" + (f" and {totals['gpus']} GPUs" * bool(totals["gpus"]))
        console.print(
            f"about {duration(totals['makespan_s'])} on {where} for what is left "
            f"({duration(totals['left_s'])} of work)"
        )
    elif totals["left_s"] is not None:
        console.print(f"about {duration(totals['left_s'])} of work is left")
    if totals["gpu_hours"]:
        price = "" if totals["price"] is None else f", {totals['price']:,.2f} at the given price"
        console.print(f"{totals['gpu_hours']:,.1f} GPU-hours{price}")
    console.print(_memory_line(data["trials"]))
    for note in data["notes"]:
        console.print(note)
    console.print(f"time {data['rate']['source']}")
    for text in data["texts"]:
        _print_text(console, text)


def _plan_by_budget(data: dict[str, Any]) -> list[Column]:
    groups = grouped(data["trials"])

    def spans(name: str, written: Callable[[float], str] = count) -> list[str]:
        return [span((t[name] for t in g), written) for g in groups]

    def settings(name: str) -> list[str]:
        return [listed(t[name] for t in g) for g in groups]

    seeded = {t["seed"] for t in data["trials"]} != {0}
    done = [sum(t["state"] in FINISHED for t in g) for g in groups]
    return [
        Column("budget", [budget_of(g[0]) for g in groups]),
        Column("preset", [g[0]["preset"] for g in groups], left=True),
        Column("mu_rec", settings("mean_recurrence"), left=True),
        Column("seeds", settings("seed") if seeded else [""] * len(groups), 4),
        Column("lr", settings("muon_lr"), 5),
        Column("batch", spans("batch_tokens"), 6),
        Column("trials", [str(len(g)) for g in groups], stays=True),
        Column("finished", [str(n) if any(done) else "" for n in done], 3),
        Column("steps", spans("n_steps", "{:,}".format)),
        Column("tokens", spans("n_tokens")),
        Column("epochs", [_epochs([t["epochs"] for t in g]) for g in groups], 1),
        Column("FLOPs", [flops(sum(t["train_flops"]["exact"] for t in g)) for g in groups], 2),
        Column("time", [_time(t["estimated_s"] for t in g) for g in groups]),
    ]


def _plan_by_trial(data: dict[str, Any]) -> list[Column]:
    trials = data["trials"]
    assumed = any(text["assumed"] for text in data["texts"])
    return [
        Column("trial", ["" if assumed else t["trial_id"] for t in trials], left=True),
        Column("state", [t["state"] for t in trials], 7, left=True),
        Column("preset", [t["preset"] for t in trials], 3, left=True),
        Column("budget", [budget_of(t) for t in trials]),
        Column("mu_rec", [str(t["mean_recurrence"]) for t in trials]),
        Column("seed", [str(t["seed"]) for t in trials]),
        Column("lr", [f"{t['muon_lr']:g}" for t in trials], 4),
        Column("batch", [count(t["batch_tokens"]) for t in trials], 6),
        Column("steps", [f"{t['n_steps']:,}" for t in trials]),
        Column("tokens", [count(t["n_tokens"]) for t in trials]),
        Column("epochs", [_epochs([t["epochs"]]) for t in trials], 5),
        Column("FLOPs", [flops(t["train_flops"]["exact"]) for t in trials], 8),
        Column("time", [_time([t["estimated_s"]]) for t in trials]),
    ]


def _epochs(epochs: list[float | None]) -> str:
    known = [e for e in epochs if e is not None]
    return span(known, digits) if any(known) else ""


def _time(seconds: Iterable[float | None]) -> str:
    known = list(seconds)
    return "" if None in known else duration(sum(s for s in known if s is not None))


def _print_text(console: Console, text: Row) -> None:
    what = f"data {text['corpus']} as {text['tokenizer']}"
    if text["assumed"]:
        what += (
            ": assumed, since it is not there or too large to be read now; trials get their ids once it is "
            "prepared (`parcae data prepare`)"
        )
    else:
        what += f", fingerprint {text['fingerprint'][:12]}"
    size = text["train_tokens"]
    console.print(
        f"{what}\ntraining text: {'' if size is None else count(size) + ' tokens, '}"
        f"{text['train_tokens_from']}"
    )


def _memory_line(trials: list[Row]) -> str:
    most = max(trials, key=lambda t: t["peak_bytes"])

    def size(key: str) -> str:
        return f"{digits(most[key] / 2**30)} GiB"

    n = most["processes"]
    whose, part = (
        ("", "the whole batch")
        if n == 1
        else (f", in each of {n} processes", "its share of a batch")
    )
    return (
        f"memory of the largest{whose}: {size('peak_bytes')} with {part} at a time, "
        f"{size('peak_bytes_one_sequence')} with one sequence ({size('state_bytes')} of weights, gradients "
        f"and optimiser, {digits(most['activation_bytes_per_sequence'] / 2**20)} MiB a sequence)"
    )
