"""The figures of the laws: isoFLOP curves, power laws of the optimum, test-time curves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from analysis.errors import InputError
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import MARKERS, MU, Drawing

if TYPE_CHECKING:
    from analysis.isoflop.parabolas import Parabola, Recurrence
    from analysis.test_time import Curve, TestTime

_MAX_PANELS = 9


def isoflop(recurrence: Recurrence, ax=None) -> Drawing:
    """Loss per budget against the axis (mu_rec, N, ...) and against tokens, the parabolas and their minima."""
    axes = list(dict.fromkeys(p.axis for p in recurrence.parabolas))
    drawing = figures.new(
        "isoflop",
        f"Validation loss of each budget against {' and '.join(words.label(a) for a in axes)}, with a parabola "
        "per budget. Stars: minima that the grid encloses; hollow stars: minima it does not, which the "
        f"exponents named _enclosed leave out. Points: {recurrence.result.source}.",
        n_panels=len(axes),
        ax=ax,
        sharey=True,
    )
    rows = recurrence.table.frame
    for place, (panel, axis) in enumerate(zip(drawing.axes, axes, strict=True)):
        own = [p for p in recurrence.parabolas if p.axis == axis]
        panel.set(xscale="log", xlabel=words.label(axis))
        if drawing.first_of_row(place):
            panel.set_ylabel(words.label("val_loss"))
        for i, (parabola, color) in enumerate(zip(own, figures.shades(len(own)), strict=True)):
            _budget(drawing, panel, recurrence, parabola, color, MARKERS[i % len(MARKERS)])
        ticks.of_quantity(panel, "x", axis, rows[axis])
    drawing.legend(drawing.axes[0], "budget (FLOPs)")
    return drawing


def _budget(drawing: Drawing, ax, recurrence, p: Parabola, color, marker) -> None:
    rows = recurrence.table.frame
    rows = rows[rows.budget_flops == p.budget_flops].sort_values(p.axis)
    label = figures.flops(p.budget_flops)
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


def power_laws(recurrence: Recurrence, ax=None, to: float | None = None) -> Drawing:
    """The optimum (mu*, N*, D*) against compute, with the fitted line and its band where an exponent follows.

    Args:
        to: FLOPs up to which the line is drawn, dashed beyond the budgets.

    Raises:
        InputError: when no budget has a minimum to draw.
    """
    axes = list(dict.fromkeys(p.axis for p in recurrence.parabolas if p.optimum is not None))
    if not axes:
        raise InputError(
            f"{recurrence.result.source}: no parabola has a minimum on its grid, so there is none to draw "
            f"against compute. Widen the grid of {recurrence.parabolas[0].axis}."
        )
    percent = f"{recurrence.result.confidence:.0%}"
    names = " and ".join(f"{words.letter(a)}*" for a in axes)
    drawing = figures.new(
        "power_laws",
        f"Compute-optimal {names} against the budget. Bars: {percent} Fieller intervals "
        f"of each minimum; band: {percent} Student t interval of the line; hollow: minima that the "
        "grid does not enclose. Dashed: extrapolation.",
        n_panels=len(axes),
        ax=ax,
    )
    for panel, axis in zip(drawing.axes, axes, strict=True):
        panel.set(xscale="log", yscale="log", xlabel=words.label("budget_flops"))
        panel.set_ylabel(f"optimal {words.label(axis)}")
        seen = [p.optimum for p in recurrence.parabolas if p.axis == axis and p.optimum is not None]
        for p in recurrence.parabolas:
            if p.axis == axis and p.optimum is not None:
                _optimum(drawing, panel, p)
        line = recurrence.lines.get(axis)
        if line is None:
            drawing.title(panel, "no exponent: too few enclosed minima")
        else:
            low, high = line.gamma_interval
            text = f"C^{line.gamma:.3f} [{low:.3f}, {high:.3f}]"
            budgets = recurrence.table.frame.budget_flops
            end = max(budgets.max(), to or 0)
            for x, dashed in figures.spans(line.x_low, line.x_high, end, start=budgets.min()):
                middle, below, above = line.predict(x)
                drawing.line(panel, axis, text, x, middle, dashed=dashed)
                drawing.band(panel, axis, text, x, below, above)
            exponent = f"{words.parameter('gamma')} = {line.gamma:.3f} [{low:.3f}, {high:.3f}]"
            drawing.title(panel, f"{words.letter(axis)}* ~ Cᵞ,  {exponent}")
        powers = 2.0 ** np.arange(12)  # of loops; a line goes on beyond those that were run
        ticks.of_quantity(panel, "y", axis, powers if axis == "mean_recurrence" else seen)
        ticks.power(panel, "x")
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


def test_time(curves: TestTime, ax=None) -> Drawing:  # noqa: PT028 - no test
    """Loss against loops at evaluation, one panel per budget, one series per run."""
    groups: dict[float | None, list[Curve]] = {}
    for curve in curves.curves:
        groups.setdefault(curve.budget_flops, []).append(curve)
    shown = sorted(groups, key=lambda b: -np.inf if b is None else b)[-_MAX_PANELS:]
    left_out = "" if len(shown) == len(groups) else f" The {_MAX_PANELS} largest budgets only."
    marks = " Dotted: the fitted floor L_inf."
    if any(c.mean_recurrence is not None for c in curves.curves):
        marks += f" Rings: T = {MU}, the mean of training."
    drawing = figures.new(
        curves.law.name,
        f"Loss against loops run at evaluation; lines: {words.formula(curves.law.formula)}, fitted to each run "
        f"by itself. Hollow: no curve follows.{marks}{left_out}",
        n_panels=len(shown),
        ax=ax,
    )
    depths = sorted({c.mean_recurrence for c in curves.curves if c.mean_recurrence is not None})
    keys: list = depths or sorted(c.run for c in curves.curves)
    colors = dict(zip(keys, figures.shades(len(keys)), strict=True))
    for panel, budget in zip(drawing.axes, shown, strict=True):
        name = "all" if budget is None else f"{figures.flops(budget)} FLOPs"
        panel.set(xscale="log", xlabel=words.label("n_loops"), ylabel=words.label("val_loss"))
        if budget is not None:
            drawing.title(panel, name)
        own = sorted(groups[budget], key=lambda c: (c.mean_recurrence or 0, c.run))
        several = Counter(c.mean_recurrence for c in own)
        for curve in own:
            key = curve.run if curve.mean_recurrence is None else curve.mean_recurrence
            place = keys.index(key)
            label = curve.run
            if curve.mean_recurrence is not None:
                label = f"{MU} = {key:g}"
                if several[curve.mean_recurrence] > 1 and len(curves.curves) <= len(MARKERS):
                    label += f" ({curve.run})"
            marker = MARKERS[place % len(MARKERS)]
            _curve(drawing, panel, name, curve, curves.law, colors[key], marker, label)
        ticks.of_values(panel, "x", np.concatenate([c.n_loops for c in own]))
    drawing.legend(drawing.axes, order=lambda label: (len(label), label))  # mu 4 before mu 16
    return drawing


test_time.__test__ = False  # type: ignore[attr-defined] # tells pytest: a figure, not a test


def _curve(drawing: Drawing, ax, panel, curve: Curve, law, color, marker, label: str) -> None:
    mu = "" if curve.mean_recurrence is None else f"mu {curve.mean_recurrence:g} "
    series = f"{mu}({curve.run})" if mu else curve.run
    drawing.points(
        ax,
        panel,
        series,
        curve.n_loops,
        curve.val_loss,
        color=color,
        marker=marker,
        filled=curve.values is not None,
        label=label,
    )
    low, high = curve.n_loops.min(), curve.n_loops.max()
    if curve.values is not None:
        grid = np.geomspace(low, high, 200)
        loss = law.predict(curve.values, {"n_loops": grid})
        drawing.line(ax, panel, series, grid, loss, color=color)
        if "L_inf" in curve.values:
            span = np.array([np.sqrt(low * high), high])  # the right half, where the curve nears it
            drawing.mark(
                ax, panel, f"L_inf {series}", y=curve.values["L_inf"], span=span, color=color
            )
    trained = curve.mean_recurrence
    if trained is not None and low <= trained <= high:
        order = np.argsort(curve.n_loops)
        at = float(np.interp(trained, curve.n_loops[order], curve.val_loss[order]))
        if curve.values is not None:
            at = float(law.predict(curve.values, {"n_loops": np.array([trained])})[0])
        drawing.points(
            ax,
            panel,
            f"T = mu {series}",
            [trained],
            [at],
            color=color,
            marker="o",
            filled=False,
            size=90,
            kind="mark",
        )
