"""What `parcae plan` and `parcae status` print, as plain data and as tables for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from parcae_core.cpus import usable_cpus
from parcae_core.result import TrainResult
from parcae_core.trial import DataConfig, Trial
from sweeps.cli.columns import (
    Column,
    console_for_people,
    count,
    digits,
    listed,
    print_table,
    span,
)
from sweeps.decisions import decisions, end_of, left_out_words, table_of, words
from sweeps.design.corpora import UNREAD
from sweeps.design.estimate import (
    duration,
    longest_first,
    makespan,
    rate_of,
    validation_flops,
)
from sweeps.design.plan import Plan, short
from sweeps.design.trunks import flops_to_make
from sweeps.reports import FINISHED, StateReport
from sweeps.store import Store

if TYPE_CHECKING:
    from rich.console import Console

LAST_LINES = 4  # of a failure's traceback
_LAST_DECISIONS = 10
_TELLING = 7  # trials that have ended, before a law of five parameters is fitted to them

Row = dict[str, Any]


def _groups(trials: Iterable[Row]) -> list[list[Row]]:
    """Trials of one size and one length of training, in the order of the plan."""
    groups: dict[Any, list[Row]] = {}
    for t in trials:
        groups.setdefault((t["preset"], t["budget_flops"] or t["n_tokens"]), []).append(t)
    return list(groups.values())


def _column(
    name: str,
    rows: Sequence[Any],
    cell: Callable[[Any], str],
    rank: int = 0,
    *,
    left: bool = False,
    stays: bool = False,
) -> Column:
    return Column(name, [cell(row) for row in rows], rank, left, stays)


def _budget(trial: Row) -> str:
    return "" if trial["budget_flops"] is None else short(trial["budget_flops"])


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
    rate = rate_of(plan.trials, store if started else None, flops_per_s, device=device, mfu=mfu)
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
                "context": trial.context,
                "epochs": None if size is None else trial.n_tokens / size,
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
    cpus = cpus or _cpus_beside(plan.trials, gpus)
    slots = _slots(plan.trials, cpus, gpus)
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
            "own_flops_paper": flops_to_make(plan.trials, "paper"),
            "own_flops_exact": flops_to_make(plan.trials, "exact"),
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
    return math.ceil(largest.cpus * (gpus // largest.gpus)) or usable_cpus()


def _slots(trials: Sequence[Trial], cpus: int, gpus: int) -> int:
    """Trials that fit side by side, by the largest request."""
    most_cpus = max(t.resources.cpus for t in trials)
    most_gpus = max(t.resources.gpus for t in trials)
    by_cpu = int(cpus // most_cpus)
    return min(by_cpu, int(gpus // most_gpus)) if most_gpus else by_cpu


def print_plan(data: dict[str, Any], *, every_trial: bool = False) -> None:
    """The plan for people, on stdout: a row per budget, or per trial."""
    console, totals = console_for_people(), data["totals"]
    columns = _plan_by_trial(data) if every_trial else _plan_by_budget(data)
    what = f"{data['name']}: {data['design']}, {totals['trials']} trials"
    print_table(console, what, columns)
    console.print(
        f"{totals['trials']} trials, {totals['finished']} finished; {count(totals['n_tokens'])} tokens, "
        f"{_flops(totals['train_flops_paper'])} FLOPs (paper), "
        f"{_flops(totals['train_flops_exact'])} (exact)"
    )
    if totals["own_flops_exact"] < totals["train_flops_exact"]:
        own, separate = totals["own_flops_paper"], totals["train_flops_paper"]
        console.print(
            f"trunks: {_flops(own)} FLOPs are made (paper), {1 - own / separate:.0%} fewer than by separate "
            f"runs; {_flops(totals['own_flops_exact'])} (exact)"
        )
    if totals["validation_flops"]:
        share = totals["validation_flops"] / totals["own_flops_exact"]
        console.print(
            f"validation on the way: {_flops(totals['validation_flops'])} FLOPs more (exact), "
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
    groups = _groups(data["trials"])

    def each(name: str, written: Callable[[float], str] = count) -> Callable[[list[Row]], str]:
        return lambda g: span((t[name] for t in g), written)

    def settings(name: str) -> Callable[[list[Row]], str]:
        return lambda g: listed(t[name] for t in g)

    seeds = {t["seed"] for t in data["trials"]}
    done = [sum(t["state"] in FINISHED for t in g) for g in groups]
    return [
        _column("budget", groups, lambda g: _budget(g[0])),
        _column("preset", groups, lambda g: g[0]["preset"], left=True),
        _column("mu_rec", groups, settings("mean_recurrence"), left=True),
        _column("seeds", groups, settings("seed") if seeds != {0} else lambda g: "", 4),
        _column("lr", groups, settings("muon_lr"), 5),
        _column("batch", groups, each("batch_tokens"), 6),
        _column("trials", groups, lambda g: str(len(g)), stays=True),
        Column("finished", [str(n) if any(done) else "" for n in done], 3),
        _column("steps", groups, each("n_steps", "{:,}".format)),
        _column("tokens", groups, each("n_tokens")),
        _column("epochs", groups, lambda g: _epochs([t["epochs"] for t in g]), 1),
        _column("FLOPs", groups, lambda g: _flops(sum(t["train_flops"]["exact"] for t in g)), 2),
        _column("time", groups, lambda g: _time(t["estimated_s"] for t in g)),
    ]


def _plan_by_trial(data: dict[str, Any]) -> list[Column]:
    trials = data["trials"]
    assumed = any(text["assumed"] for text in data["texts"])
    ids = (lambda t: "") if assumed else (lambda t: t["trial_id"])
    return [
        _column("trial", trials, ids, left=True),
        _column("state", trials, lambda t: t["state"], 7, left=True),
        _column("preset", trials, lambda t: t["preset"], 3, left=True),
        _column("budget", trials, _budget),
        _column("mu_rec", trials, lambda t: str(t["mean_recurrence"])),
        _column("seed", trials, lambda t: str(t["seed"])),
        _column("lr", trials, lambda t: f"{t['muon_lr']:g}", 4),
        _column("batch", trials, lambda t: count(t["batch_tokens"]), 6),
        _column("steps", trials, lambda t: f"{t['n_steps']:,}"),
        _column("tokens", trials, lambda t: count(t["n_tokens"])),
        _column("epochs", trials, lambda t: _epochs([t["epochs"]]), 5),
        _column("FLOPs", trials, lambda t: _flops(t["train_flops"]["exact"]), 8),
        _column("time", trials, lambda t: _time([t["estimated_s"]])),
    ]


def _flops(flops: float) -> str:
    return short(float(f"{flops:.3g}"))


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

    return (
        f"memory of the largest: {size('peak_bytes')} with the whole batch at a time, "
        f"{size('peak_bytes_one_sequence')} with one sequence ({size('state_bytes')} of weights, gradients "
        f"and optimiser, {digits(most['activation_bytes_per_sequence'] / 2**20)} MiB a sequence)"
    )


# ---- parcae status -------------------------------------------------------------------------------


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
        per_step = trial.train_flops("paper") / trial.n_steps
        made["separate"] += per_step * state.step
        made["own"] += per_step * (state.step - shared)
        losses = {r.n_loops: r.val_loss for r in result.evaluation} if result else {}
        loss = losses.get(trial.mean_recurrence)
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
    damaged = {i: problem for i, problem in store.problems().items() if i not in listed}
    counts = Counter(t["state"] for t in trials) + Counter({"damaged": len(damaged)})
    return {
        "name": store.name,
        "folder": store.where,
        "counts": dict(counts),
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
        _column("chosen", made, lambda r: r["trial_id"] or "", left=True),
        _column("budget", made, lambda r: _budget(r) if r["trial_id"] else ""),
        _column("mu_rec", made, lambda r: str(r["mean_recurrence"] or "")),
        _column("seed", made, lambda r: "" if r["seed"] is None else str(r["seed"]), 2),
        _column("because", made, lambda r: r["reason"], left=True),
        _column("runs", made, lambda r: str(r["n_runs"] or ""), 3),
        _column("FLOPs", made, lambda r: _flops(r["flops"]) if r["flops"] else ""),
        _column(_half_name(targets), made, _half),
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
    for trial_id, problem in data["damaged"].items():
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
        spent = f"{now['n_runs']} runs of {_flops(now['flops'])} FLOPs"
        console.print(f"{words(now)} by {spent}, from the training law")
    for sentence in left_out_words(data["design"][-1]) if data["design"] else ():
        console.print(sentence)
    if why := end_of(data["design"]):
        console.print(f"the design has ended: {why}")
    made = data["made_flops_paper"]
    if made["own"] < made["separate"]:
        console.print(
            f"trunks: {_flops(made['own'])} FLOPs made (paper); separate runs would have made "
            f"{_flops(made['separate'])}"
        )


def _status_by_budget(trials: list[Row]) -> list[Column]:
    groups = _groups(trials)

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
        _column("budget", groups, lambda g: _budget(g[0])),
        _column("preset", groups, lambda g: g[0]["preset"], left=True),
        _column("mu_rec", groups, lambda g: listed(t["mean_recurrence"] for t in g), 2, left=True),
        _column("trials", groups, lambda g: str(len(g)), stays=True),
        *map(state, dict.fromkeys(t["state"] for t in trials)),
        _column("steps", groups, steps, 1),
        _column("best val loss", groups, best),
    ]


def _status_by_trial(trials: list[Row]) -> list[Column]:
    return [
        _column("trial", trials, lambda t: t["trial_id"], left=True),
        _column("state", trials, lambda t: t["state"] + " (kept)" * (not t["in_plan"]), left=True),
        _column("preset", trials, lambda t: t["preset"], 4, left=True),
        _column("budget", trials, _budget),
        _column("mu_rec", trials, lambda t: str(t["mean_recurrence"])),
        _column("seed", trials, lambda t: str(t["seed"])),
        _column("step", trials, lambda t: f"{t['step']:,}/{t['n_steps']:,}"),
        _column("train loss", trials, lambda t: _number(t["train_loss"], ".4f"), 3),
        _column("val loss", trials, lambda t: _number(t["val_loss"], ".4f")),
        _column("tokens/s", trials, lambda t: _number(t["tokens_per_s"], ",.0f"), 2),
        _column("tries", trials, lambda t: str(t["attempts"]), 5),
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
