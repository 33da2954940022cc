"""What looping gains: how far towards the next size, and how much compute at equal loss.

Relative quality of a looped model = (L_small - L_looped) / (L_small - L_large): 0 is the Transformer of its
size, 1 the one twice as large. It depends on the metric: by log perplexity Parcae's 770M reaches 51.1 % of
the way to 1.3B, by Core scores 87.5 % (arXiv:2604.12946). Say which metric a number is of.

Effective speed-up at equal loss = C_plain / C_looped: the compute at which the plain models' curve of loss over
compute reaches the looped model's loss, over what the looped model spent.

A looped model's loss is the one at T = mu_rec. Models of several mu or budgets are compared one by one; what is
averaged are runs of one setting, seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri, stdtrit

from analysis.choices import Reading
from analysis.errors import InputError
from analysis.fitting.intervals import ratio_interval
from analysis.table import checks, load, numbers
from analysis.table.columns import LETTERS, info
from analysis.table.load import Table

if TYPE_CHECKING:
    import pandas as pd

NEXT_SIZE = 1.2  # times a size, at least: between closer ones noise is all there is (the paper's are 1.7 to 2.7)
_LOG = ("perplexity", "ppl")
_SETTING = ("n_params", "mean_recurrence", "budget_flops")
_TURNED = "the larger Transformer has no lower loss, and a larger quality is no better model"
_UNLIKE = "trained on other tokens than the Transformer of its size, which the quality holds too"
# what runs that are averaged may not differ in, besides their setting
_ALIKE = (
    "mean_recurrence",
    "n_loops",
    "n_tokens",
    "train_flops",
    "injection",
    "muon_lr",
    "adamw_lr",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows per looped model, and what they say."""

    metric: str
    quality: list[dict]
    speed: list[dict]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return {
            "metric": self.metric,
            "relative_quality": self.quality,
            "speed_up": self.speed,
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        import pandas as pd

        tables = {f"relative quality by {self.metric}": self.quality, "speed-up": self.speed}
        return "".join(
            f"<p>{name}</p>{pd.DataFrame(rows).to_html(float_format='{:.4g}'.format, na_rep='')}"
            for name, rows in tables.items()
            if rows
        )

    def report(self, as_text: Callable[[list[dict]], str]) -> str:
        parts = [f"relative quality by {self.metric} (0: its size, 1: the next size)"]
        shown = [_in_letters(row) for row in self.quality]  # full names are wider than a terminal
        parts.append(as_text(shown) if shown else "none follows")
        if self.speed:
            parts += ["effective speed-up at equal loss", as_text(self.speed)]
        return "\n".join([*parts, *(f"  note: {n}" for n in self.notes)])


def _in_letters(row: dict) -> dict:
    """A row of the quality as people read it: a letter a quantity, the interval in one cell."""
    setting = {info(n)[0]: row[n] for n in _SETTING if n in row}
    ends = ["open" if row[k] is None else f"{row[k]:.3g}" for k in ("ci_low", "ci_high")]
    interval = "" if ends == ["open", "open"] else f"[{', '.join(ends)}]"
    told = {"small": row["small"], "large": row["large"], "quality": row["relative_quality"]}
    return {**setting, **told, "95 %": interval}


def relative_quality(
    small,
    looped,
    large,
    variances: tuple[float, ...] | None = None,
    dof: float = np.inf,
    confidence: float = 0.95,
) -> tuple[float, float | None, float | None]:
    """(value, low, high) of (small - looped) / (small - large), of losses or of scores alike.

    Args:
        variances: of each of the three, independent; without them there is no interval.
        dof: degrees of freedom that they were estimated with.

    Raises:
        InputError: when the small and the large model have the same value.
    """
    if small == large:
        raise InputError(
            f"the small and the large model both have {small:g}: there is nothing between them to "
            "compare with; use another metric."
        )
    value = float((small - looped) / (small - large))
    if variances is None:
        return value, None, None
    level = 0.5 + confidence / 2
    t = float(ndtri(level) if np.isinf(dof) else stdtrit(dof, level))
    of_small, of_looped, of_large = variances  # `small` is in both differences
    covariance = ((of_small + of_looped, of_small), (of_small, of_small + of_large))
    return value, *ratio_interval(small - looped, small - large, covariance, t * t)


def compare(
    looped: str | Path,
    plain: str | Path,
    metric: str = "loss",
    reading: Reading | None = None,
    **options,
) -> Comparison:
    """Looped models of one table against the Transformers of another.

    Args:
        metric: loss, or a column of both tables; a perplexity is compared by its logarithm.
        reading: how both tables are read; or its parts by name, as columns="N=params,loss=loss".

    Raises:
        InputError: columns missing, tables that cannot be compared, runs of one setting that are no
            replicas, or no looped model whose size and next size are both there.
    """
    reading = reading or Reading(**options)
    name = LETTERS.get(metric, metric)
    tables = [load.at_training_depth(reading.table(s, own=(metric,))) for s in (looped, plain)]
    _refuse_other_quantities(tables[0], tables[1], name)
    keys = [n for n in _SETTING if n != "budget_flops" or all(_known(t, n) for t in tables)]
    loops = _groups(tables[0], name, keys)
    plains = _groups(tables[1], name, [n for n in keys if n != "mean_recurrence"])
    quality, notes = [], [n for n in tables[0].notes if "T = mean_recurrence" in n]
    notes += [
        f"{t.source}: {d.n_rows} rows left out: {d.reason}" for t in tables for d in t.dropped
    ]
    lacking: list[str] = []
    told: dict[str, list[str]] = {_TURNED: [], _UNLIKE: []}
    for setting, values in loops.items():
        here = dict(zip((k for k in keys if k in tables[0].frame), setting, strict=True))
        words = ", ".join(f"{info(n)[0]} = {v:.4g}" for n, v in here.items())
        size, rivals = here["n_params"], _rivals(plains, here.get("budget_flops"))
        small = min(rivals, key=lambda s: abs(s / size - 1), default=np.inf)
        larger = [s for s in rivals if s >= size * NEXT_SIZE]
        has_twin = abs(small / size - 1) <= checks.SAME_SIZE
        if not (has_twin and larger):
            lacks = f"{NEXT_SIZE} times its size or more" if has_twin else "its size"
            lacks += " at its budget" if "budget_flops" in here else ""
            lacking.append(
                f"{words}: {plain} has no Transformer of {lacks}, so no relative quality follows"
            )
            continue
        rows = (rivals[small], values, rivals[min(larger)])
        below, looped_mean, above = (float(v.mean()) for v in rows)
        if _is_loss(name) and above >= below:
            sizes = f"the Transformer of {min(larger):.4g} against that of {small:.4g}"
            told[_TURNED].append(f"{words}: {sizes}")
        if "budget_flops" not in here:
            told[_UNLIKE] += _other_tokens(tables, keys, setting, small, words)
        value, low, high = relative_quality(below, looped_mean, above, *_scatter(rows))
        found = {"small": small, "large": min(larger), "relative_quality": value}
        quality.append({**here, **found, "ci_low": low, "ci_high": high})
    if not quality and lacking:
        raise InputError(
            "; ".join(lacking) + ". Add rows of those sizes, trained as the looped ones were."
        )
    notes += [
        f"{len(of)} of {len(quality)} models: {sentence}; {of[0]}"
        for sentence, of in told.items()
        if of
    ]
    if quality and all(q["ci_low"] is None and q["ci_high"] is None for q in quality):
        notes.append("no interval: too few runs per setting to tell the spread; add seeds")
    speed = _speed_up(*tables) if metric == "loss" else []
    return Comparison(metric, quality, speed, (*lacking, *notes))


def _known(table: Table, name: str) -> bool:
    return name in table.frame and bool(table.frame[name].notna().all())


def _is_loss(metric: str) -> bool:
    """Whether a metric is per token, and less of it is better."""
    return metric == "val_loss" or any(w in metric.lower() for w in ("loss", *_LOG))


def _other_tokens(tables, keys, setting, small: float, words: str) -> list[str]:
    """What to say where a looped model and the Transformer of its size saw other numbers of tokens."""
    if not all(_known(t, "n_tokens") for t in tables):
        return []
    own = _groups(tables[0], "n_tokens", keys)[setting].mean()
    other = _groups(tables[1], "n_tokens", ["n_params"])[(small,)].mean()
    if abs(own / other - 1) <= checks.SAME_SIZE:
        return []
    return [f"{words}: {own:.3g} against {other:.3g}"]


def _refuse_other_quantities(looped: Table, plain: Table, metric: str) -> None:
    """What may not be mixed in one table may not be compared across two, as far as the metric depends on it."""
    names: tuple[str, ...] = ()
    if _is_loss(metric):
        names = ("tokenizer", "vocab_size", "data_fingerprint")
    if "bpb" in metric.lower():
        names = ("data_fingerprint",)
    flops = ("budget_flops", *(("train_flops",) if metric == "val_loss" else ()))
    if any(n in looped.frame and n in plain.frame for n in flops):
        names = (*names, "flops_rule")
    for name in names:
        if not (_known(looped, name) and _known(plain, name)):
            continue
        one, other = (t.frame[name].iloc[0] for t in (looped, plain))
        if str(one) != str(other):
            raise InputError(
                f"{looped.source} has {looped.called(name)} {str(one)[:12]} and {plain.source} has "
                f"{plain.called(name)} {str(other)[:12]}; {checks.UNMIXABLE[name]}. Compare tables that agree in it."
            )


def _groups(table: Table, name: str, keys: list[str]) -> dict[tuple[float, ...], np.ndarray]:
    """Values of the metric by setting, the runs of one setting together."""
    table = load.need(table, ("n_params", name), "compare")
    keys = [k for k in keys if k in table.frame]
    frame = table.frame.assign(**{k: numbers.floats(table.frame[k]) for k in keys})
    if "budget_flops" in keys:
        frame = frame.assign(budget_flops=checks.grouped(frame.budget_flops, checks.SAME_BUDGET))
    found = {}
    for _, rows in frame.groupby(keys, dropna=False):
        setting = tuple(float(rows[k].iloc[0]) for k in keys)
        _refuse_no_replicas(table, rows, dict(zip(keys, setting, strict=True)))
        values = np.array(rows[name], dtype=float)
        found[setting] = np.log(values) if any(word in name.lower() for word in _LOG) else values
    return found


def _refuse_no_replicas(table: Table, rows: pd.DataFrame, setting: dict[str, float]) -> None:
    for name in _ALIKE:
        if name in setting or name not in rows or rows[name].nunique(dropna=False) < 2:
            continue
        values = rows[name].dropna()
        if values.dtype.kind in "iuf" and len(values) == len(rows):
            low, high = float(values.min()), float(values.max())
            if high <= low * (1 + checks.SAME_BUDGET):
                continue
            ends = f"{low:.4g} to {high:.4g}"
        else:
            ends = " and ".join(map(str, rows[name].unique()[:2]))
        words = ", ".join(f"{info(n)[0]} = {v:.4g}" for n, v in setting.items())
        cure = (
            "map budget=COLUMN in both tables, or " if name in ("n_tokens", "train_flops") else ""
        )
        raise InputError(
            f"{table.source}: {len(rows)} runs of one setting ({words}) have {table.called(name)} {ends}; only "
            f"seeds are averaged. To compare them one by one, {cure}keep one with --where."
        )


def _rivals(plains: dict[tuple[float, ...], np.ndarray], budget: float | None) -> dict:
    """Values of the Transformers by size; of a looped model's own budget, where budgets are compared."""
    if budget is None:
        return {s: v for (s,), v in plains.items()}
    return {s: v for (s, b), v in plains.items() if abs(b / budget - 1) <= checks.SAME_BUDGET}


def _scatter(groups) -> tuple[tuple[float, ...] | None, float]:
    """Variance of each group's mean, from the scatter pooled over all, and its degrees of freedom."""
    dof = sum(len(g) - 1 for g in groups)
    squares = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    if not dof or not squares:
        return None, np.inf
    return tuple(squares / dof / len(g) for g in groups), dof


def _speed_up(looped: Table, plain: Table) -> list[dict]:
    """C_plain / C_looped at equal loss, by a line in log C through the plain models' lowest losses."""
    needed = ("train_flops", "val_loss")
    if not all(set(needed) <= set(t.frame) for t in (looped, plain)):
        return []
    front = load.on_the_frontier(plain).frame.sort_values("train_flops")
    log_c, loss = np.log(front.train_flops.to_numpy(float)), front.val_loss.to_numpy(float)
    out = []
    rows = looped.frame.sort_values("train_flops")[["train_flops", "val_loss"]].to_numpy(float)
    for spent, reached in rows.tolist():
        inside = len(loss) > 1 and loss.min() <= reached <= loss.max()
        needed_c = float(np.exp(np.interp(-reached, -loss, log_c))) if inside else None
        out.append(
            {
                "looped_flops": spent,
                "loss": reached,
                "plain_flops": needed_c,
                "speed_up": None if needed_c is None else needed_c / spent,
            }
        )
    return out
