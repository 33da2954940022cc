"""A law over what it is a law of: one variable, or parameters and tokens; extrapolated with a band.

Bands are percentiles of the linearised law (`Fit.student_draws`): of the law's mean, not of one more run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import prediction
from analysis.errors import InputError
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import CYCLE, MARKERS, Drawing
from analysis.table.numbers import count

if TYPE_CHECKING:
    from analysis.fitting.fit import Fit
    from analysis.isoflop.power_law import PowerLine
    from analysis.laws.law import Law
    from analysis.table.table import Table

_DRAWS = 1000
_MAX_SIZES = 6
_SIZES = ("n_params", "n_params_unrolled")


def can_draw(form: Law) -> bool:
    """Whether one of the figures here is of this law."""
    columns = set(form.columns)
    of_sizes = any(columns == {size, "n_tokens"} for size in _SIZES)
    return len(columns) == 1 or of_sizes or form.name == "repeated"


def law(fitted: Fit, ax=None, to: float | None = None) -> Drawing:
    """The figure that fits the law's variables.

    Args:
        to: FLOPs up to which a law over compute is drawn; of a law in N or D alone, the value itself.

    Raises:
        InputError: a law in other variables.
    """
    if len(fitted.law.columns) == 1:
        return one_variable(fitted, ax, to)
    if fitted.law.name == "repeated":
        return repeated(fitted, ax)
    if can_draw(fitted.law):
        return sizes_and_tokens(fitted, ax, to)
    raise InputError(
        f"law {fitted.law.name!r} has the variables {', '.join(fitted.law.columns)}; a figure over one of them "
        "would hide the others."
    )


def one_variable(fitted: Fit, ax=None, to: float | None = None) -> Drawing:
    """The target against the law's only variable: rows, law, band."""
    form, data, result = fitted.law, fitted.dataset, fitted.result
    [column] = form.columns
    x, y = data.columns[column], data.target
    drawing = figures.new(
        f"law_{form.name}",
        f"{words.formula(form.formula)}, fitted to {len(data)} rows of {result.source}. Band: "
        f"{fitted.options.confidence:.0%} interval of the law's mean, linearised; dashed: extrapolation.",
        ax=ax,
    )
    [panel] = drawing.axes
    logged = bool((x > 0).all()) and x.max() > 5 * x.min()
    panel.set(xlabel=words.label(column, data.table), ylabel=words.label(form.target, data.table))
    if logged:
        panel.set_xscale("log")
    drawing.points(panel, column, "rows", x, y, color=CYCLE[0], marker="o", label="rows")
    space = np.geomspace if logged else np.linspace
    for grid, dashed in figures.spans(x.min(), x.max(), to, 100, space):
        values, low, high = _band(fitted, {column: grid})
        drawing.line(
            panel, column, form.name, grid, values, dashed=dashed, label=None if dashed else "law"
        )
        drawing.band(panel, column, form.name, grid, low, high)
    if logged:
        ticks.of_quantity(panel, "x", column, x)
    drawing.legend(panel)
    return drawing


def sizes_and_tokens(fitted: Fit, ax=None, to: float | None = None) -> Drawing:
    """Loss against tokens, a curve per size; and against C = 6 N D, with the lowest loss at each compute."""
    form, data, result = fitted.law, fitted.dataset, fitted.result
    size = next(s for s in _SIZES if s in form.columns)
    n, d, loss = data.columns[size], data.columns["n_tokens"], data.target
    plain = size == "n_params"  # unrolled parameters do not cost 6 N D
    groups = _sizes(n)
    caption = (
        f"{words.formula(form.formula)}, fitted to {len(data)} rows of {result.source}. Left: the law at each "
        f"size{'' if max(map(len, groups)) == 1 else ', of several sizes at their geometric mean'}."
    )
    if plain:
        caption += (
            " Right: the lowest loss at each compute C = 6 N D by the law; band: "
            f"{fitted.options.confidence:.0%} interval, linearised; dashed: extrapolation."
        )
    drawing = figures.new(f"law_{form.name}", caption, n_panels=1 + plain, ax=ax, sharey=True)
    left, right = drawing.axes[0], drawing.axes[-1]
    left.set(xscale="log", xlabel=words.label("n_tokens"), ylabel=words.label(form.target))
    for sizes, style in zip(groups, _styles(groups), strict=True):
        rows, name, color = np.isin(n, sizes), style["label"], style["color"]
        drawing.points(left, "tokens", name, d[rows], loss[rows], **style)
        if len(np.unique(d[rows])) > 1:
            grid = np.geomspace(d[rows].min(), d[rows].max(), 60)
            middle = np.full(60, np.exp(np.log(sizes).mean()))
            curve = fitted.predict({size: middle, "n_tokens": grid})
            drawing.line(left, "tokens", name, grid, curve, color=color)
        if plain:
            drawing.points(right, "compute", name, 6 * n[rows] * d[rows], loss[rows], **style)
    if plain:
        right.set(xscale="log", xlabel="training compute C = 6 N D (FLOPs)")
        if drawing.first_of_row(1):
            right.set_ylabel(words.label(form.target))
        _frontier(drawing, right, fitted, 6 * n * d, to)
        ticks.power(right, "x")
    ticks.plain(left, "x")
    drawing.legend(drawing.axes, words.letter(size))
    return drawing


def repeated(fitted: Fit, ax=None) -> Drawing:
    """Loss against what the tokens are worth, a curve per size; and that worth against how often they came."""
    form, data = fitted.law, fitted.dataset
    n, d, unique = (data.columns[c] for c in ("n_params", "n_tokens", "unique_tokens"))
    r = form.whole(fitted.params)["R"]
    once, again = np.minimum(unique, d), np.maximum(d / unique - 1, 0)
    worth = once * (1 + r * (1 - np.exp(-again / r)))
    groups = _sizes(n)
    drawing = figures.new(
        f"law_{form.name}",
        f"{words.formula(form.formula)}, fitted to {len(data)} rows of {fitted.result.source}. Left: against the fresh "
        f"tokens that the seen ones are worth, the law at each size"
        f"{'' if max(map(len, groups)) == 1 else ', of several sizes at their geometric mean'}. Right: that worth as "
        f"a multiple of the unique tokens, R = {r:.3g}; thin: were they all fresh.",
        n_panels=2,
        ax=ax,
    )
    left, right = drawing.axes
    left.set(
        xscale="log",
        xlabel="fresh tokens that D is worth",
        ylabel=words.label(form.target, data.table),
    )
    right.set(xscale="log", yscale="log", xlabel="epochs D / U", ylabel="worth / U")
    grid = np.geomspace(worth.min(), worth.max(), 60)
    for sizes, style in zip(groups, _styles(groups), strict=True):
        rows, name, color = np.isin(n, sizes), style["label"], style["color"]
        drawing.points(left, "worth", name, worth[rows], data.target[rows], **style)
        of = {"n_params": np.full(60, np.exp(np.log(sizes).mean()))}
        curve = fitted.predict(of | {"n_tokens": grid, "unique_tokens": grid})
        drawing.line(left, "worth", name, grid, curve, color=color)
        drawing.points(right, "epochs", name, (d / unique)[rows], (worth / unique)[rows], **style)
    epochs = np.geomspace(min(1.0, (d / unique).min()), (d / unique).max(), 60)
    more = r * (1 - np.exp(-np.maximum(epochs - 1, 0) / r))
    drawing.line(right, "epochs", "law", epochs, np.minimum(epochs, 1) + more)
    drawing.line(right, "epochs", "all fresh", epochs, epochs, kind="reference", width=0.6)
    ticks.plain(left, "x")
    for axis in ("x", "y"):
        ticks.plain(right, axis)
    drawing.legend(drawing.axes, words.letter("n_params"))
    return drawing


def _sizes(n: np.ndarray) -> list[np.ndarray]:
    """The sizes, neighbours together where they are many."""
    each = np.unique(n)
    return np.array_split(each, min(len(each), _MAX_SIZES))


def _styles(groups: list[np.ndarray]) -> list[dict[str, Any]]:
    """How the points of each group of sizes look."""
    return [
        {
            "color": color,
            "marker": MARKERS[i % len(MARKERS)],
            "size": 16,
            "label": "-".join(dict.fromkeys(count(v) for v in (sizes[0], sizes[-1]))),
        }
        for i, (sizes, color) in enumerate(zip(groups, figures.shades(len(groups)), strict=True))
    ]


def _frontier(drawing: Drawing, panel, fitted: Fit, spent: np.ndarray, to: float | None) -> None:
    """The law's lowest loss along C = 6 N D, where it turns."""
    for compute, dashed in figures.spans(spent.min(), spent.max(), to):
        values, low, high = _band(fitted, None, compute)
        drawing.line(panel, "compute", "frontier", compute, values, dashed=dashed, width=1.8)
        drawing.band(panel, "compute", "frontier", compute, low, high)


def _band(fitted: Fit, columns=None, compute: np.ndarray | None = None):
    """(value, low, high) of the law at columns, or of its minimum along each compute."""
    size = 100 * (1 - fitted.options.confidence) / 2

    def at(params) -> np.ndarray:
        if compute is None:
            return fitted.law.predict(params, columns)
        return _lowest(fitted.law, params, compute)

    every = prediction.over(fitted.student_draws(_DRAWS), at)
    with np.errstate(all="ignore"):
        low, high = np.nanpercentile(every, [size, 100 - size], axis=0)
    return at(fitted.params), low, high


def _lowest(form, params, compute: np.ndarray) -> np.ndarray:
    """The least loss over N along 6 N D = C, (len(compute),)."""
    shares = np.linspace(0.15, 0.85, 120)  # log N over log(C / 6)
    log_n = shares[:, None] * np.log(compute / 6)[None, :]
    n = np.exp(log_n).ravel()
    d = (compute[None, :] / 6 / np.exp(log_n)).ravel()
    loss = form.predict(params, {"n_params": n, "n_tokens": d})
    return loss.reshape(len(shares), len(compute)).min(axis=0)


def power(x: np.ndarray, y: np.ndarray, line: PowerLine, table: Table, ax=None, to=None) -> Drawing:
    """y = k x^gamma with its band."""
    low, high = line.gamma_interval
    drawing = figures.new(
        "law_power",
        f"y = k x^{words.parameter('gamma')}, {words.parameter('gamma')} = {line.gamma:.3f} [{low:.3f}, {high:.3f}], "
        f"by regression of the logarithms. Band: {line.confidence:.0%} Student t interval of the line; dashed: "
        f"extrapolation. Points: {table.source}.",
        ax=ax,
    )
    [panel] = drawing.axes
    panel.set(xscale="log", yscale="log")
    panel.set(xlabel=words.label("x", table), ylabel=words.label("y", table))
    drawing.points(panel, "power", "points", x, y, color=CYCLE[0], marker="o")
    for grid, dashed in figures.spans(line.x_low, line.x_high, to):
        middle, below, above = line.predict(grid)
        drawing.line(panel, "power", "line", grid, middle, dashed=dashed)
        drawing.band(panel, "power", "line", grid, below, above)
    drawing.title(panel, f"y ~ x^{line.gamma:.3f} [{low:.3f}, {high:.3f}]")
    for axis, values in (("x", x), ("y", y)):
        ticks.of_quantity(panel, axis, axis, values)
    return drawing
