"""What looping gains: how far towards the next size, and how much compute at equal loss.

Relative quality of a looped model = (L_small - L_looped) / (L_small - L_large): 0 is the Transformer of its
size, 1 the one twice as large. It depends on the metric: by log perplexity Parcae's 770M reaches 51.1 % of
the way to 1.3B, by Core scores 87.5 % (arXiv:2604.12946). Say which metric a number is of.

Effective speed-up at equal loss = C_plain / C_looped: the compute at which the plain models' curve of loss over
compute reaches the looped model's loss, over what the looped model spent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.choices import Reading
from analysis.errors import InputError
from analysis.fitting.intervals import ratio_interval
from analysis.table import load
from analysis.table.columns import LETTERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from analysis.table.load import Table

SAME_SIZE = 0.05  # an injection adds about a per cent to a model's parameters
_LOG = ("perplexity", "ppl")


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
        parts.append(as_text(self.quality) if self.quality else "none follows")
        if self.speed:
            parts += ["effective speed-up at equal loss", as_text(self.speed)]
        return "\n".join([*parts, *(f"  note: {n}" for n in self.notes)])


def relative_quality(
    small, looped, large, spread: float | None = None, confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """(value, low, high) of (small - looped) / (small - large), of losses or of scores alike.

    Args:
        spread: standard deviation of each of the three between seeds; without it there is no interval.

    Raises:
        InputError: when the larger model is no better than the smaller beyond the spread.
    """
    if small == large:
        raise InputError(
            f"the small and the large model both have {small:g}: there is nothing between them to "
            "compare with; use another metric."
        )
    value = float((small - looped) / (small - large))
    if not spread:
        return value, None, None
    from scipy.special import ndtri

    # the three are independent, and `small` is in both differences
    z2 = float(ndtri(0.5 + confidence / 2)) ** 2 * spread**2
    return value, *ratio_interval(small - looped, small - large, ((2, 1), (1, 2)), z2)


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
        InputError: columns missing, or no looped model whose size and next size are both there.
    """
    reading = reading or Reading(**options)
    tables = [reading.table(s, own=(metric,)) for s in (looped, plain)]
    loops, plain_rows = (_rows(t, metric) for t in tables)
    quality, notes = [], []
    for size, values in sorted(loops.items()):
        small = next((s for s in plain_rows if abs(s / size - 1) <= SAME_SIZE), None)
        larger = [s for s in plain_rows if s > size * (1 + SAME_SIZE)]
        if small is None or not larger:
            lacks = "Transformer of its size" if small is None else "larger Transformer"
            notes.append(
                f"{size:.4g} parameters: {plain} has no {lacks}, so no relative quality follows"
            )
            continue
        rows = (plain_rows[small], values, plain_rows[min(larger)])
        below, looped_mean, above = (v.mean() for v in rows)
        value, low, high = relative_quality(below, looped_mean, above, _spread(rows))
        quality.append(
            {
                "n_params": size,
                "small": small,
                "large": min(larger),
                "relative_quality": value,
                "ci_low": low,
                "ci_high": high,
            }
        )
    if not quality and notes:
        raise InputError("; ".join(notes) + ". Add rows of those sizes.")
    if quality and quality[0]["ci_low"] is None:
        notes.append("no interval: one run per size says nothing of the spread; add seeds")
    speed = _speed_up(*tables) if metric == "loss" else []
    return Comparison(metric, quality, speed, tuple(notes))


def _rows(table: Table, metric: str) -> dict[float, np.ndarray]:
    """Values of the metric by size; seeds and budgets of one size lie together."""
    name = LETTERS.get(metric, metric)
    table = load.need(table, ("n_params", name), "compare")
    values = np.array(table.frame[name], dtype=float)
    if any(word in name.lower() for word in _LOG):
        values = np.log(values)
    return {float(s): values[table.frame.n_params == s] for s in np.unique(table.frame.n_params)}


def _spread(groups) -> float | None:
    """Standard deviation of one mean, pooled over sizes that have several runs."""
    dof = sum(len(g) - 1 for g in groups)
    if dof < 1 or min(len(g) for g in groups) < 2:
        return None
    variance = sum(((g - g.mean()) ** 2).sum() for g in groups) / dof
    return float(np.sqrt(variance / min(len(g) for g in groups)))


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
