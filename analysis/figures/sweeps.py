"""The figures of the laws: isoFLOP curves, power laws of the optimum, test-time curves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from analysis.errors import InputError
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import MARKERS, MU, Drawing, Pen
from analysis.isoflop.parabolas import Parabola, Recurrence
from analysis.laws.law import Law
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
            _budget(drawing.pen(panel, axis, color, MARKERS[i % len(MARKERS)]), rows, parabola)
        ticks.of_quantity(panel, "x", axis, rows[axis])
    drawing.legend(drawing.axes[0], "budget (FLOPs)")
    return drawing


def _budget(pen: Pen, rows, p: Parabola) -> None:
    rows = rows[rows.budget_flops == p.budget_flops].sort_values(p.axis)
    label = figures.flops(p.budget_flops)
    fitted = p.sse > 0 or p.c != 0
    pen.points(label, rows[p.axis], rows.val_loss, filled=fitted, label=label)
    if not fitted:
        return
    grid = np.geomspace(p.low, p.high, 100)
    pen.line(label, grid, p.predict(grid))
    if p.optimum is None:
        return
    if not p.low <= p.optimum <= p.high:
        end = p.low if p.optimum < p.low else p.high
        beyond = np.geomspace(end, p.optimum, 30)
        pen.line(label, beyond, p.predict(beyond), dashed=True)
    filled = p.status == "interior"
    series = f"minimum {label}" + ("" if filled else " (not enclosed)")
    replace(pen, marker="*").points(series, [p.optimum], [p.optimum_loss], filled=filled, size=90)


def power_laws(recurrence: Recurrence, ax=None, to: float | None = None) -> Drawing:
    """The optimum (mu*, N*, D*) against compute, with the fitted line and its band where an exponent follows.

    Args:
        to: FLOPs up to which the line is drawn, dashed beyond the budgets.
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
        own = [p for p in recurrence.parabolas if p.axis == axis and p.optimum is not None]
        for p in own:
            _optimum(drawing.pen(panel, axis, figures.CYCLE[0]), p)
        pen = drawing.pen(panel, axis)
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
                pen.line(text, x, middle, dashed=dashed)
                pen.band(text, x, below, above)
            exponent = f"{words.parameter('gamma')} = {line.gamma:.3f} [{low:.3f}, {high:.3f}]"
            drawing.title(panel, f"{words.letter(axis)}* ~ Cᵞ,  {exponent}")
        powers = 2.0 ** np.arange(12)  # of loops; a line goes on beyond those that were run
        seen = powers if axis == "mean_recurrence" else [p.optimum for p in own]
        ticks.of_quantity(panel, "y", axis, seen)
        ticks.power(panel, "x")
    return drawing


def _optimum(pen: Pen, p: Parabola) -> None:
    filled = p.status == "interior"
    series = "minima" if filled else "minima not enclosed"
    pen.points(series, [p.budget_flops], [p.optimum], filled=filled)
    if p.ci_low is not None and p.ci_high is not None:
        pen.bar(series, [p.budget_flops], [p.ci_low], [p.ci_high])


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
            pen = drawing.pen(panel, name, colors[key], MARKERS[place % len(MARKERS)])
            _curve(pen, curve, curves.law, label)
        ticks.of_values(panel, "x", np.concatenate([c.n_loops for c in own]))
    drawing.legend(drawing.axes, order=lambda label: (len(label), label))  # mu 4 before mu 16
    return drawing


test_time.__test__ = False  # type: ignore[attr-defined] # tells pytest: a figure, not a test


def _curve(pen: Pen, curve: Curve, law: Law, label: str) -> None:
    trained, fitted = curve.mean_recurrence, curve.values is not None
    series = curve.run if trained is None else f"mu {trained:g} ({curve.run})"
    pen.points(series, curve.n_loops, curve.val_loss, filled=fitted, label=label)
    low, high = curve.n_loops.min(), curve.n_loops.max()
    if fitted:
        grid = np.geomspace(low, high, 200)
        pen.line(series, grid, law.predict(curve.params, {"n_loops": grid}))
        if "L_inf" in curve.params:
            span = np.array([np.sqrt(low * high), high])  # the right half, where the curve nears it
            pen.mark(f"L_inf {series}", curve.params["L_inf"], span)
    if trained is not None and low <= trained <= high:
        order = np.argsort(curve.n_loops)
        at = np.interp(trained, curve.n_loops[order], curve.val_loss[order])
        if fitted:
            at = law.predict(curve.params, {"n_loops": np.array([trained])})[0]
        ring = replace(pen, marker="o")
        ring.points(f"T = mu {series}", [trained], [at], filled=False, size=90, kind="mark")
