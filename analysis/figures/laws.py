"""A law over what it is a law of: one variable, or parameters and tokens; extrapolated with a band.

Bands are percentiles of the linearised law (`Fit.student_draws`): of the law's mean, not of one more run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis import prediction
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import CYCLE, MARKERS, Drawing
from analysis.fitting.fit import Fit
from analysis.isoflop.power_law import PowerFit
from analysis.laws.law import Law
from analysis.table import load
from analysis.table.numbers import count

_DRAWS = 1000
_MAX_SIZES = 6
_DOT = 16  # size of a point where there are many
_SIZES = ("n_params", "n_params_unrolled")


def figure_of(form: Law) -> Callable[..., Drawing] | None:
    """What draws a law, if a figure over one or two of its variables hides no other.

    It takes `to`: FLOPs up to which a law over compute is drawn; of a law in N or D alone, the value itself.
    """
    if len(form.columns) == 1:
        return one_variable
    if form.name == "repeated":
        return repeated
    of_sizes = any(set(form.columns) == {size, "n_tokens"} for size in _SIZES)
    return sizes_and_tokens if of_sizes else None


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
    drawing.pen(panel, column, CYCLE[0]).points("rows", x, y, label="rows")
    space, pen = np.geomspace if logged else np.linspace, drawing.pen(panel, column)
    for grid, dashed in figures.spans(x.min(), x.max(), to, 100, space):
        values, low, high = _band(fitted, {column: grid})
        pen.line(form.name, grid, values, dashed=dashed, label=None if dashed else "law")
        pen.band(form.name, grid, low, high)
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
    for sizes, (name, *style) in zip(groups, _styles(groups), strict=True):
        rows, pen = np.isin(n, sizes), drawing.pen(left, "tokens", *style)
        pen.points(name, d[rows], loss[rows], size=_DOT, label=name)
        if len(np.unique(d[rows])) > 1:
            grid = np.geomspace(d[rows].min(), d[rows].max(), 60)
            middle = np.full(60, np.exp(np.log(sizes).mean()))
            pen.line(name, grid, fitted.predict({size: middle, "n_tokens": grid}))
        if plain:
            pen = drawing.pen(right, "compute", *style)
            pen.points(name, 6 * n[rows] * d[rows], loss[rows], size=_DOT, label=name)
    if plain:
        right.set(xscale="log", xlabel="training compute C = 6 N D (FLOPs)")
        if drawing.first_of_row(1):
            right.set_ylabel(words.label(form.target))
        _frontier(drawing, right, fitted, 6 * n * d, to)
        ticks.power(right, "x")
    ticks.plain(left, "x")
    drawing.legend(drawing.axes, words.letter(size))
    return drawing


def repeated(fitted: Fit, ax=None, to: float | None = None) -> Drawing:
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
    for sizes, (name, *style) in zip(groups, _styles(groups), strict=True):
        rows, pen = np.isin(n, sizes), drawing.pen(left, "worth", *style)
        pen.points(name, worth[rows], data.target[rows], size=_DOT, label=name)
        of = {"n_params": np.full(60, np.exp(np.log(sizes).mean()))}
        pen.line(name, grid, fitted.predict(of | {"n_tokens": grid, "unique_tokens": grid}))
        pen, own = drawing.pen(right, "epochs", *style), unique[rows]
        pen.points(name, d[rows] / own, worth[rows] / own, size=_DOT, label=name)
    epochs = np.geomspace(min(1.0, (d / unique).min()), (d / unique).max(), 60)
    more = r * (1 - np.exp(-np.maximum(epochs - 1, 0) / r))
    pen = drawing.pen(right, "epochs")
    pen.line("law", epochs, np.minimum(epochs, 1) + more)
    pen.line("all fresh", epochs, epochs, kind="reference", width=0.6)
    ticks.plain(left, "x")
    for axis in ("x", "y"):
        ticks.plain(right, axis)
    drawing.legend(drawing.axes, words.letter("n_params"))
    return drawing


def _sizes(n: np.ndarray) -> list[np.ndarray]:
    """The sizes, neighbours together where they are many."""
    each = np.unique(n)
    return np.array_split(each, min(len(each), _MAX_SIZES))


def _styles(groups: list[np.ndarray]) -> list[tuple[str, str, str]]:
    """Name, colour and marker of each group of sizes."""
    names = ["-".join(dict.fromkeys((count(sizes[0]), count(sizes[-1])))) for sizes in groups]
    return list(zip(names, figures.shades(len(groups)), MARKERS, strict=False))


def _frontier(drawing: Drawing, panel, fitted: Fit, spent: np.ndarray, to: float | None) -> None:
    """The law's lowest loss along C = 6 N D, where it turns."""
    pen = drawing.pen(panel, "compute")
    for compute, dashed in figures.spans(spent.min(), spent.max(), to):
        values, low, high = _band(fitted, None, compute)
        pen.line("frontier", compute, values, dashed=dashed, width=1.8)
        pen.band("frontier", compute, low, high)


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


def power(found: PowerFit, ax=None, to: float | None = None) -> Drawing:
    """y = k x^gamma with its band."""
    line, table = found.line, found.table
    x, y = load.columns_of(table, ("x", "y")).values()
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
    drawing.pen(panel, "power", CYCLE[0]).points("points", x, y)
    pen = drawing.pen(panel, "power")
    for grid, dashed in figures.spans(line.x_low, line.x_high, to):
        middle, below, above = line.predict(grid)
        pen.line("line", grid, middle, dashed=dashed)
        pen.band("line", grid, below, above)
    drawing.title(panel, f"y ~ x^{line.gamma:.3f} [{low:.3f}, {high:.3f}]")
    for axis, values in (("x", x), ("y", y)):
        ticks.of_quantity(panel, axis, axis, values)
    return drawing
