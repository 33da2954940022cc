"""What may not lie in one table: two sizes, two texts, a run counted twice; and seeds, which may.

Each check names the rows in the file's own words, and a `--where` that takes them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.errors import InputError
from analysis.table import numbers
from analysis.table.columns import LAW_COLUMNS
from analysis.table.table import Table

UNMIXABLE = {
    "flops_rule": "budgets counted by different rules are different budgets",
    "tokenizer": "losses per token of different tokenizers are different quantities",
    "vocab_size": "losses per token of different vocabularies are different quantities",
    "data_fingerprint": "losses on different texts are different quantities",
}
SAME_SIZE = 0.05  # a transformer lacks the injection of its looped twin, a few per cent of it
SAME_BUDGET = 0.01  # achieved FLOPs miss a budget by part of a step; budgets differ by far more
_ACHIEVED = 0.1  # or by this much, where the gaps between budgets show it
_GAP = 5  # times as wide as the gaps inside
_CURVE = 4  # settings that a parabola needs
SAME_LOSS = 1e-3  # two losses of one setting further apart than this share are not one measurement
# What laws are fitted over; rows that differ in none of these, and in no column of the law, are one setting
_SETTING = ("budget_flops", "mean_recurrence", "n_tokens", "n_params", "n_loops")
_RECIPE = ("injection", "muon_lr", "adamw_lr")
_SEEDS = ("seed", "data_seed")
TUNED = ("learning_rate", "muon_lr", "adamw_lr", "batch_size", "mean_backprop_depth")
# A law that has one of these knows that models loop, with one of the first also what fixed depth is
_LOOPED_SIZES = frozenset(("n_params_unrolled", "n_params_core", "n_params_once"))
_LOOPS = _LOOPED_SIZES | {"mean_recurrence", "n_loops"}
_LADDER = 3  # models named one by one, each of its own size, are a family and no mixture


def refuse_mixtures(table: Table, parts: tuple[str, ...] = ()) -> None:
    """Rows whose losses or budgets are different quantities; in `parts`, columns that cut it on purpose, they may be."""
    for name, why in UNMIXABLE.items():
        if name not in table.frame or table.called(name) in parts:
            continue
        if table.frame[name].nunique(dropna=False) < 2:
            continue
        values = table.frame[name].dropna().unique()
        shown = [str(v)[:12] for v in values[:3]]
        shown += ["(empty)"] * bool(table.frame[name].isna().any())
        called = table.called(name)
        raise InputError(
            f"{table.source}: the rows mix {called} {' and '.join(shown)}; {why}. "
            f"Keep one with --where {quoted(f'{called}={values[0]}')}."
        )


def refuse_sizes(table: Table, law: str) -> None:
    """Two models in a law that is per size. A size that is a function of mu is the unrolled one."""
    frame = table.frame
    if "n_params" not in frame:
        return
    if "preset" in frame and table.kind == "sweep":
        presets = frame.preset.unique()
        if len(presets) > 1:
            raise InputError(
                f"{table.source}: presets {', '.join(map(str, presets))} are mixed; the {law} law is "
                f"per size. Keep one with --where preset={presets[0]}."
            )
        return
    sizes = numbers.floats(frame.n_params)
    ends = grouped(sizes, SAME_SIZE)
    # unrolled parameters: a size belongs to each mean recurrence
    if ends.nunique() < 2 or _one_to_one(ends, frame.mean_recurrence):
        return
    groups = sizes.groupby(ends)
    shown = ", ".join(f"{v:.4g}" for v in groups.min())
    raise InputError(
        f"{table.source}: {len(groups)} model sizes ({table.called('n_params')} {shown}) are mixed; the "
        f"{law} law is per size. Keep one with {_one_size(sizes, ends, frame)}."
    )


def _one_size(sizes, ends, frame) -> str:
    """The filter that keeps the models of one size, looped ones: those of one loop may be Transformers."""
    looped = numbers.floats(frame.mean_recurrence) > 1
    if ends[looped].nunique() == 1:
        return '--where "mu>1"'
    end = ends[looped].min() if looped.any() else ends.min()
    low, high = sizes[ends == end].min(), sizes[ends == end].max()
    if low == high:
        return f"--where {quoted(f'N={low:.15g}')}"
    least = "" if end == ends.min() else f'--where "N>={low:.15g}" '
    return f'{least}--where "N<={high:.15g}"'


def mixtures(table: Table, columns: tuple[str, ...], *, frontier: bool = False) -> list[str]:
    """What a law over `columns` would take for one and is not: architectures, or loops it does not know.

    A sentence each, and no refusal: their losses can be compared, but one law describes neither.

    Args:
        frontier: the law takes the best of whatever was run at each compute, loops included.
    """
    out = [_named_apart(table, columns, label, frontier) for label in ("architecture", "preset")]
    if not frontier:
        out.append(_loops_apart(table, columns))
    return [sentence for sentence in out if sentence]


def _named_apart(table: Table, columns, label: str, frontier: bool) -> str:
    frame = table.frame
    if label not in frame or (label == "preset" and (table.kind == "sweep" or frontier)):
        return ""
    names = frame[label].astype("str").fillna("(empty)")
    n_names = names.nunique()
    least = _LADDER if label == "architecture" else 2
    ladder = any(_one_to_one(names, _sizes(frame, c)) for c in columns if c in frame)
    if n_names < 2 or (n_names >= least and ladder) or _is_depth(names, frame, columns):
        return ""
    called, first = table.called(label), frame[label].dropna().astype("str").iloc[0]
    shown = list(dict.fromkeys(names))[:3]
    return (
        f"the rows mix {called} {' and '.join(shown)}, and one law of several models describes none of "
        f"them; keep one with --where {quoted(f'{called}={first}')}"
    )


def _loops_apart(table: Table, columns) -> str:
    """Of a table whose sizes count loops already there is nothing to say."""
    frame = table.frame
    if _LOOPS & set(columns):
        return ""
    for name in ("mean_recurrence", "n_loops"):
        if name not in frame or frame[name].nunique(dropna=False) < 2:
            continue
        loops = numbers.floats(frame[name])
        if "n_params" in columns and _one_to_one(loops, _sizes(frame, "n_params")):
            continue
        values = loops.value_counts()
        shown = ", ".join(f"{v:g}" for v in sorted(values.index)[:6])
        shown += ", ..." if len(values) > 6 else ", (empty)" if loops.isna().any() else ""
        letter, called = LAW_COLUMNS[name][0], table.called(name)
        law = "training" if name == "mean_recurrence" else "unified"
        return (
            f"the runs loop differently ({called} {shown}) and the law does not know {letter}: keep one with "
            f'--where "{called}={values.index[0]:g}", or fit a law that does, like --law {law}'
        )
    return ""


def tuning(table: Table, columns: tuple[str, ...]) -> list[str]:
    """Runs of one setting of a law that were tuned differently: it would take their mean, and none is best."""
    frame = table.frame
    keys = [c for c in columns if c in frame]
    for name in TUNED:
        called = table.called(name)
        if not keys or name not in frame or {name, called} & set(columns):
            continue
        settings = frame.groupby(keys, dropna=False)
        loss = settings.val_loss
        apart = loss.max() > loss.min() * (1 + SAME_LOSS)
        several = int((apart & (settings[name].nunique() > 1)).sum())
        if several:
            values = frame[name].dropna().value_counts()
            most = quoted(f"{called}={values.index[0]}")
            return [
                f"{several} settings were run with several values of {called}, and a law through all of them is "
                f"not the best runs'. Keep one with --where {most}, or let the lowest losses count with --undertuned 10"
            ]
    return []


def _is_depth(names, frame, columns) -> bool:
    """Whether names tell what a law of N(mu) knows: fixed depth at one loop, looped models above."""
    if not _LOOPED_SIZES & set(columns) or "mean_recurrence" not in frame:
        return False
    looped = numbers.floats(frame.mean_recurrence) > 1
    return bool((names.groupby(looped).nunique() == 1).all())


def _sizes(frame, name: str):
    values = numbers.floats(frame[name])
    return grouped(values, SAME_SIZE) if name.startswith("n_params") else values


def _one_to_one(a, b) -> bool:
    return bool((b.groupby(a).nunique() == 1).all() and (a.groupby(b).nunique() == 1).all())


def grouped(values, tolerance: float):
    """Each value's group, named by its smallest: a group spans at most 1 + tolerance."""
    start = float("-inf")
    of: dict[float, float] = {}
    for value in sorted(values.dropna().unique()):
        if value > start * (1 + tolerance) or not of:
            start = value
        of[value] = start
    return values.map(of)


def with_grouped_budgets(table: Table) -> Table:
    """Budgets within `SAME_BUDGET` of one another, or told from the next by a gap, are one, at their mean; said in a note."""
    budgets = numbers.floats(table.frame.budget_flops)
    near = grouped(budgets, SAME_BUDGET)
    group = _told_by_gaps(table.frame, budgets, near)
    if group.nunique() == budgets.nunique():
        return table
    mean = budgets.groupby(group).transform("mean")
    # budgets that were spelt exactly keep their number
    typical = budgets.groupby(group).transform("nunique") > 1
    frame = table.frame.assign(budget_flops=budgets.where(~typical, mean))
    ends = budgets.groupby(group).agg(["min", "max"])
    apart = (ends["max"] / ends["min"]).max() - 1
    how = f"those within {SAME_BUDGET:.0%} of one another are one"
    if apart > SAME_BUDGET * (1 + 1e-9):
        how += f", and so are those up to {apart:.1%} apart that a gap {_GAP} times as wide as theirs tells from the next"
    return replace(table, frame=frame).noting(
        f"{budgets.nunique()} values of {table.called('budget_flops')} make {group.nunique()} budgets: {how}"
    )


def _told_by_gaps(frame, budgets, near):
    """`near`, with the values that runs achieved of one budget joined.

    They lie within `_ACHIEVED` of one another, each of few runs, and all gaps between budgets are `_GAP` times as wide as
    those inside. A value that has a curve of its own is a budget of its own.
    """
    import numpy as np

    unique = np.unique(budgets.dropna())
    if not (unique > 0).all():  # refused where a law needs them
        return near
    gaps = np.diff(np.log(unique))
    wide = np.sort(gaps)[::-1]
    settings = [c for c in ("mean_recurrence", "n_params", "n_tokens") if c in frame]
    for i in np.flatnonzero(wide[:-1] >= _GAP * wide[1:]):
        labels = np.concatenate([[0], np.cumsum(gaps >= wide[i])])
        first, last = (
            np.unique(labels, return_index=True)[1],
            np.flatnonzero(np.diff(labels, append=np.inf)),
        )
        if (unique[last] > unique[first] * (1 + _ACHIEVED)).any():
            continue
        own = frame.groupby(budgets)[settings].nunique().max(axis=1).reindex(unique) >= _CURVE
        start = dict(zip(unique, unique[first][labels], strict=True))
        group = budgets.map(start)
        several = budgets.groupby(group).transform("nunique") >= _CURVE
        alone = budgets.map(own).groupby(group).transform("any")
        return near.where(~(several & ~alone), group)
    return near


def repeated(table: Table, over: tuple[str, ...] = ()) -> list[str]:
    """The same run and setting twice, with other losses: a sentence for each run."""
    if "trial_id" not in table.frame:
        return []
    frame = table.frame
    along = () if "n_tokens" in frame else ("train_flops",)  # how far a run had come
    told = dict.fromkeys((*_SETTING, *along, *over, *_SEEDS))
    key = ["trial_id", *(c for c in told if c in frame)]
    twice = frame[frame.duplicated(key, keep=False)]
    out = []
    for run, rows in twice.groupby("trial_id", sort=False):
        groups = rows.groupby(key, dropna=False, sort=False)
        first = next(iter(groups))[1]
        losses = ", ".join(f"{v:.4f}" for v in numbers.floats(first.val_loss))
        place = next((c for c in ("n_loops", "n_tokens") if c in key), "")
        where = f" at {LAW_COLUMNS[place][0]} = {first[place].iloc[0]:.6g}" if place else ""
        more = f", and likewise at {len(groups) - 1} more" if len(groups) > 1 else ""
        out.append(
            f"run {run} has {len(first)} losses{where} ({losses}){more}: keep one evaluation of it, or "
            "map run to a column that tells the two apart"
        )
    return out


def disagreements(table: Table, over: tuple[str, ...]) -> list[str]:
    """A run counted twice, and runs of one setting, seeds included, whose losses differ.

    Args:
        over: the law's columns, which belong to the setting.
    """
    frame = table.frame
    twice = repeated(table, over)
    if twice:
        return twice
    shown = tuple(dict.fromkeys((*_SETTING, *over)))
    same = [c for c in (*shown, *_RECIPE, *_SEEDS) if c in frame]
    if not same or "val_loss" not in frame:
        return []
    frame = frame.assign(val_loss=numbers.floats(frame.val_loss))
    spread = frame.groupby(same, dropna=False).val_loss.agg(["min", "max", "size"])
    bad = spread[(spread["size"] > 1) & (spread["max"] > spread["min"] * (1 + SAME_LOSS))]
    cure = "" if "seed" in frame else "; if they are seeds, map the column that tells: seed=COLUMN"
    sentences = []
    for setting, row in bad.iterrows():
        named = dict(zip(same, setting if isinstance(setting, tuple) else (setting,), strict=True))
        text = ", ".join(f"{k} {v:.4g}" for k, v in named.items() if k in shown and v == v)
        sentences.append(
            f"{int(row['size'])} runs of the same setting ({text}) have losses {row['min']:.4f} to "
            f"{row['max']:.4f}: keep one, or say what differs{cure}"
        )
    return sentences


@dataclass(frozen=True, slots=True)
class Averaged:
    """Rows with the seeds of a setting averaged, and what the seeds say of the noise."""

    table: Table
    variance: float | None  # of one run's loss about its setting's mean, pooled; None without seeds
    dof: int
    n_seeds: float  # per setting, the harmonic mean: a mean's variance is variance / n_seeds


def averaged_seeds(table: Table, over: tuple[str, ...] = ()) -> Averaged:
    """One row per setting: seeds are replicas, and a parabola through each alone counts them twice."""
    frame = table.frame
    if "seed" not in frame or "val_loss" not in frame:
        return Averaged(table, None, 0, 1.0)
    same = [c for c in dict.fromkeys((*_SETTING, *over, *_RECIPE)) if c in frame]
    settings = frame.groupby(same, dropna=False, sort=False)
    size = settings.val_loss.transform("size")
    if size.max() < 2:
        return Averaged(table, None, 0, 1.0)
    mean = settings.val_loss.transform("mean")
    dof = int(len(frame) - settings.ngroups)
    variance = float(((frame.val_loss - mean) ** 2).sum() / dof)
    first = ~frame.duplicated(same)
    few = int((size[first] < 2).sum())
    frame = frame.assign(val_loss=mean)[first].reset_index(drop=True)
    kept = replace(table, frame=frame, others=None, rows=table.numbers[first.to_numpy()])
    alone = f", {few} have one alone" if few else ""
    return Averaged(
        kept.noting(
            f"{settings.ngroups} settings are means over up to {int(size.max())} seeds each{alone}; one "
            f"run's loss scatters by {variance**0.5:.2g} nats about its setting's mean"
        ),
        variance,
        dof,
        float(1 / (1 / size[first]).mean()),
    )


def quoted(condition: str) -> str:
    plain = condition.replace("=", "").replace("_", "").replace(".", "").replace("+", "")
    return condition if plain.isalnum() else f'"{condition}"'
