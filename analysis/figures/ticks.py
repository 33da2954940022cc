"""Ticks of log axes: as people write the numbers, and never two that touch."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.table.numbers import count

_COUNTS = (
    "n_tokens",
    "n_params",
    "n_params_unrolled",
    "n_params_core",
    "n_params_once",
    "unique_tokens",
)
_LOOPS = ("mean_recurrence", "n_loops")
_RAISED = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


def of_quantity(ax, axis: str, column: str, values) -> None:
    """Ticks that fit a log axis of this quantity: loops as 2, 4, 8; counts as 1M, 10M; FLOPs as powers."""
    if column in _LOOPS:
        of_values(ax, axis, values)
    elif column in _COUNTS:
        plain(ax, axis)
    elif np.max(values) / np.min(values) < 100 and column not in ("train_flops", "budget_flops"):
        of_values(ax, axis, values)
    else:
        power(ax, axis)


def plain(ax, axis: str) -> None:
    """A log axis labelled 200k, 500k, 1M, 1B: few enough not to collide over less than two decades."""
    target = ax.xaxis if axis == "x" else ax.yaxis
    low, high = np.log10(ax.get_xlim() if axis == "x" else ax.get_ylim())
    target.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high - low < 2 else (1.0,)))
    target.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    target.set_minor_formatter(NullFormatter())


def power(ax, axis: str) -> None:
    """A log axis of FLOPs: 10^18, or 2 x 10^18 where less than a decade is shown, and never two that touch."""
    target = ax.xaxis if axis == "x" else ax.yaxis
    low, high = np.log10(ax.get_xlim() if axis == "x" else ax.get_ylim())
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high - low < 0.5 else (1.0, 3.0)
    target.set_major_locator(LogLocator(subs=subs if high - low < 1.5 else (1.0,), numticks=6))
    target.set_major_formatter(FuncFormatter(lambda v, _: _scientific(v)))
    target.set_minor_formatter(NullFormatter())


def _scientific(value: float) -> str:
    """3×10¹⁸, without TeX, whose parser takes longer than the rest of an axis."""
    exponent = int(np.floor(np.log10(value) + 1e-9)) if value > 0 else 0
    factor = value / 10.0**exponent
    head = "" if abs(factor - 1) < 1e-6 else f"{factor:.3g}\u00d7"
    return f"{head}10{str(exponent).translate(_RAISED)}"


def of_values(ax, axis: str, values) -> None:
    """A log axis whose ticks are values that were run; where they stand too close, fewer of them."""
    target = ax.xaxis if axis == "x" else ax.yaxis
    low, high = np.log10(ax.get_xlim() if axis == "x" else ax.get_ylim())
    runs = {float(v) for v in values if v > 0 and low <= np.log10(v) <= high}
    apart = (high - low) / (11 if axis == "x" else 9)  # a label's size on a panel
    kept: list[float] = []
    for value in sorted(runs, key=_roundness):
        if all(abs(np.log10(value / other)) >= apart for other in kept):
            kept.append(float(value))
    target.set_major_locator(FixedLocator(sorted(kept)))
    target.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    target.set_minor_locator(NullLocator())


def _roundness(value: float) -> tuple[bool, float]:
    """Powers of two first: 2, 4, 8 tell loops better than 6 and 10."""
    return float(np.log2(value)) % 1 != 0, value
