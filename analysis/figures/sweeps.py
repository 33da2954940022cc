"""The figures of the laws: isoFLOP curves, power laws of the optimum, test-time curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.errors import InputError
from analysis.figures import drawing as figures
from analysis.figures.drawing import MARKERS, Drawing

if TYPE_CHECKING:
    from analysis.isoflop.parabolas import Parabola, Recurrence
    from analysis.test_time import Curve, TestTime

_LABEL = {
    "mean_recurrence": "mean recurrence (loops)",
    "n_tokens": "training tokens",
    "val_loss": "validation loss (nats per token)",
    "budget": "training budget (FLOPs)",
    "n_loops": "loops at evaluation, T",
}
_MAX_PANELS = 9


def isoflop(recurrence: Recurrence) -> Drawing:
    """Loss per budget against mu_rec and against tokens, the parabolas and their minima."""
    drawing = figures.new(
        "isoflop",
        "Validation loss of each budget against mean recurrence and tokens, with a parabola per "
        "budget. Stars: minima that the grid encloses; hollow stars: minima it does not, which "
        f"enter no power law. Points: {recurrence.result.source}.",
        n_panels=2,
    )
    for ax, axis in zip(drawing.axes, ("mean_recurrence", "n_tokens"), strict=True):
        own = [p for p in recurrence.parabolas if p.axis == axis]
        colors = figures.shades(len(own))
        ax.set(xscale="log", xlabel=_LABEL[axis], ylabel=_LABEL["val_loss"])
        for i, (parabola, color) in enumerate(zip(own, colors, strict=True)):
            _budget(drawing, ax, recurrence, parabola, color, MARKERS[i % len(MARKERS)])
        if axis == "mean_recurrence":
            figures.log_ticks(ax, "x", recurrence.table.frame.mean_recurrence)
        else:
            figures.plain_ticks(ax, "x")
    drawing.legend(drawing.axes[0], "budget (FLOPs)")
    return drawing


def _budget(drawing: Drawing, ax, recurrence, p: Parabola, color, marker) -> None:
    rows = recurrence.table.frame
    rows = rows[rows.budget_flops == p.budget_flops].sort_values(p.axis)
    label = f"{p.budget_flops:.3g}"
    fitted = p.sse > 0 or p.c != 0
    drawing.points(
        ax,
        p.axis,
        label,
        rows[p.axis],
        rows.val_loss,
        color=color,
        marker=marker,
        filled=fitted,
        label=label,
    )
    if not fitted:
        return
    grid = np.geomspace(p.low, p.high, 100)
    drawing.line(ax, p.axis, label, grid, p.predict(grid), color=color)
    if p.optimum is None:
        return
    if not p.low <= p.optimum <= p.high:
        end = p.low if p.optimum < p.low else p.high
        beyond = np.geomspace(end, p.optimum, 30)
        drawing.line(ax, p.axis, label, beyond, p.predict(beyond), color=color, dashed=True)
    drawing.points(
        ax,
        p.axis,
        f"minimum {label}" + ("" if p.status == "interior" else " (not enclosed)"),
        [p.optimum],
        [p.optimum_loss],
        color=color,
        marker="*",
        filled=p.status == "interior",
        size=90,
    )


def power_laws(recurrence: Recurrence) -> Drawing:
    """mu* and D* against compute, with the fitted line and its band where an exponent follows.

    Raises:
        InputError: when no budget has a minimum to draw.
    """
    if all(p.optimum is None for p in recurrence.parabolas):
        raise InputError(
            f"{recurrence.result.source}: no parabola has a minimum on its grid, so there is none to draw "
            "against compute. Widen the grid of mean_recurrence."
        )
    percent = f"{recurrence.result.confidence:.0%}"
    drawing = figures.new(
        "power_laws",
        f"Optimal mean recurrence and tokens against the budget. Bars: {percent} Fieller intervals "
        f"of each minimum; band: {percent} Student t interval of the line; hollow: minima that the "
        "grid does not enclose. Dashed: extrapolation.",
        n_panels=2,
    )
    letters = {"mean_recurrence": "mu", "n_tokens": "D"}
    for ax, axis in zip(drawing.axes, letters, strict=True):
        ax.set(xscale="log", yscale="log", xlabel=_LABEL["budget"])
        ax.set_ylabel(f"optimal {_LABEL[axis]}")
        for p in recurrence.parabolas:
            if p.axis == axis and p.optimum is not None:
                _optimum(drawing, ax, p)
        line = recurrence.lines.get(axis)
        if line is None:
            ax.set_title("no exponent: too few enclosed minima", fontsize=8)
            continue
        low, high = line.gamma_interval
        text = f"C^{line.gamma:.3f} [{low:.3f}, {high:.3f}]"
        for x, dashed in _spans(line.x_low, line.x_high, recurrence.table.frame.budget_flops):
            middle, below, above = line.predict(x)
            drawing.line(ax, axis, text, x, middle, dashed=dashed)
            drawing.band(ax, axis, text, x, below, above)
        ax.set_title(f"{letters[axis]}* ~ {text}", fontsize=8)
    return drawing


def _optimum(drawing: Drawing, ax, p: Parabola) -> None:
    color = figures.CYCLE[0]
    filled = p.status == "interior"
    series = "minima" if filled else "minima not enclosed"
    drawing.points(
        ax, p.axis, series, [p.budget_flops], [p.optimum], color=color, marker="o", filled=filled
    )
    if p.ci_low is not None and p.ci_high is not None:
        drawing.bar(ax, p.axis, series, [p.budget_flops], [p.ci_low], [p.ci_high], color=color)


def _spans(low: float, high: float, budgets):
    """The fitted range, and the measured budgets beyond it on either side."""
    yield np.geomspace(low, high, 50), False
    if budgets.min() < low:
        yield np.geomspace(budgets.min(), low, 30), True
    if budgets.max() > high:
        yield np.geomspace(high, budgets.max(), 30), True


def test_time(curves: TestTime) -> Drawing:
    """Loss against loops at evaluation, one panel per budget, one series per mean recurrence."""
    groups: dict[float | None, list[Curve]] = {}
    for curve in curves.curves:
        groups.setdefault(curve.budget_flops, []).append(curve)
    shown = sorted(groups, key=lambda b: -np.inf if b is None else b)[-_MAX_PANELS:]
    left_out = "" if len(shown) == len(groups) else f" The {_MAX_PANELS} largest budgets only."
    drawing = figures.new(
        curves.law.name,
        f"Loss against loops run at evaluation; lines: {curves.law.formula}, fitted to each run by "
        f"itself. Hollow: no curve follows.{left_out}",
        n_panels=len(shown),
    )
    depths = sorted({c.mean_recurrence for c in curves.curves if c.mean_recurrence is not None})
    colors: dict[float | None, str] = dict(zip(depths, figures.shades(len(depths)), strict=True))
    for ax, budget in zip(drawing.axes, shown, strict=True):
        panel = "all" if budget is None else f"{budget:.3g} FLOPs"
        ax.set(xlabel=_LABEL["n_loops"], ylabel=_LABEL["val_loss"])
        ax.set_title(panel, fontsize=8)
        for curve in sorted(groups[budget], key=lambda c: (c.mean_recurrence or 0, c.run)):
            place = depths.index(curve.mean_recurrence) if curve.mean_recurrence in depths else 0
            color = colors.get(curve.mean_recurrence, figures.CYCLE[0])
            _curve(drawing, ax, panel, curve, curves.law, color, MARKERS[place % len(MARKERS)])
    drawing.legend(drawing.axes, order=lambda label: (len(label), label))  # mu 4 before mu 16
    return drawing


test_time.__test__ = False  # type: ignore[attr-defined] # tells pytest: a figure, not a test


def _curve(drawing: Drawing, ax, panel, curve: Curve, law, color, marker) -> None:
    mu = curve.run if curve.mean_recurrence is None else f"mu {curve.mean_recurrence:g}"
    series = f"{mu} ({curve.run})"
    drawing.points(
        ax,
        panel,
        series,
        curve.n_loops,
        curve.val_loss,
        color=color,
        marker=marker,
        filled=curve.values is not None,
        label=mu,
    )
    if curve.values is not None:
        grid = np.linspace(curve.n_loops.min(), curve.n_loops.max(), 200)
        loss = law.predict(curve.values, {"n_loops": grid})
        drawing.line(ax, panel, series, grid, loss, color=color)
