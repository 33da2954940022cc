"""Figures of the parametric laws: contours, observed against predicted, profiles, frontiers."""

from __future__ import annotations

import numpy as np

from analysis import prediction
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import CYCLE, MARKERS, MU, Drawing
from analysis.fitting.fit import Fit
from analysis.table import load
from analysis.table.load import Table


def observed(fitted: Fit, ax=None) -> Drawing:
    """Observed against predicted loss (or what the law gives), and the relative error of each row."""
    law, data, result = fitted.law, fitted.dataset, fitted.result
    y, predicted = data.target, fitted.predict(data.columns)
    error = 100 * (predicted / y - 1)
    what, unit = "loss", " (nats per token)"
    if law.target != "val_loss":
        what, unit = words.label(law.target, data.table), ""
    drawing = figures.new(
        f"observed_{law.name}",
        f"{words.formula(law.formula)}: observed against predicted {what}, and the error of each row. "
        f"Mean absolute error {np.abs(error).mean():.3g} %. Rows: {result.source}.",
        n_panels=2,
        ax=ax,
    )
    left, right = drawing.axes
    left.set(xlabel=f"predicted {what}{unit}", ylabel=f"observed {what}{unit}")
    right.set(xlabel=f"predicted {what}{unit}", ylabel="predicted / observed - 1 (%)")
    ends = np.array([min(y.min(), predicted.min()), max(y.max(), predicted.max())])
    drawing.pen(left, "observed").line("equality", ends, ends, kind="reference")
    drawing.pen(right, "error").line("equality", ends, np.zeros(2), kind="reference")
    by, groups = _groups(data)
    for i, (group, color) in enumerate(zip(groups, figures.shades(len(groups)), strict=True)):
        rows = slice(None) if group is None else by == group
        name = "rows" if group is None else f"mu {group:g}"
        label, marker = None if group is None else f"{MU} = {group:g}", MARKERS[i % len(MARKERS)]
        for panel, of, values in ((left, "observed", y), (right, "error", error)):
            pen = drawing.pen(panel, of, color, marker)
            pen.points(name, predicted[rows], values[rows], label=label)
    drawing.legend(left)
    return drawing


def _groups(data) -> tuple[np.ndarray, list]:
    """Rows by mean recurrence, where there are several of them."""
    frame = data.table.frame
    if "mean_recurrence" not in frame or frame.mean_recurrence.nunique() < 2:
        return np.zeros(len(data)), [None]
    by = frame.mean_recurrence.to_numpy(float)
    return by, sorted(set(by))


def profiles(fitted: Fit, ax=None) -> Drawing:
    """How much worse the fit gets as each parameter is held away from its best value."""
    law, confidence = fitted.law, fitted.options.confidence
    drawing = figures.new(
        f"profiles_{law.name}",
        f"{words.formula(law.formula)}: profile likelihoods. Dashed: the limit of the {confidence:.0%} "
        "interval; a curve that never crosses it leaves the parameter open. Rows: "
        f"{fitted.dataset.table.source}.",
        n_panels=len(law.params),
        columns=3,
        ax=ax,
        sharey=True,
    )
    for i, (panel, p) in enumerate(zip(drawing.axes, law.params, strict=True)):
        found = fitted.profile(p.name)
        near = found.deviance <= 4 * found.limit
        panel.set_xlabel(words.parameter(p.name))
        if drawing.first_of_row(i):
            panel.set_ylabel("deviance")
        values = found.values[near]
        wide = p.kind == "coefficient" and values[-1] > 10 * values[0] > 0
        if wide:
            panel.set_xscale("log")
        drawing.pen(panel, p.name).line("profile", values, found.deviance[near])
        ends, limit = values[[0, -1]], [found.limit] * 2
        drawing.pen(panel, p.name, CYCLE[1]).line("limit", ends, limit, dashed=True, kind="limit")
        if wide:
            ticks.power(panel, "x")
        else:
            panel.locator_params(axis="x", nbins=5)
    return drawing


def contours(fitted: Fit, ax=None) -> Drawing:
    """Iso-loss lines of the training law over compute and mu, and the efficient frontier.

    Raises:
        InputError: when FLOPs per token or the size cannot be read from the rows.
    """
    law, result = fitted.law, fitted.result
    table = load.need(
        fitted.dataset.table, ("mean_recurrence", "train_flops", *law.columns), law.name
    )
    total, core = prediction.sizes(table)
    cost = prediction.flops_per_token(table)
    frame = table.frame
    flops = np.geomspace(frame.train_flops.min(), frame.train_flops.max(), 80)
    mu = np.geomspace(1, 2 * frame.mean_recurrence.max(), 800)
    grid = {
        "n_params_unrolled": np.repeat(total + (mu - 1) * core, len(flops)),
        "n_tokens": (flops[None, :] / cost(mu)[:, None]).ravel(),
    }
    loss = fitted.predict(grid).reshape(len(mu), len(flops))
    drawing = figures.new(
        "contours",
        "Lines of equal loss of the fitted training law over compute and mean recurrence; black: the "
        f"mean recurrence of lowest loss at each compute; dots: the runs. Rows: {result.source}.",
        ax=ax,
    )
    ax = drawing.axes[0]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=words.label("train_flops"),
        ylabel=words.label("mean_recurrence"),
    )
    pen = drawing.pen(ax, "contours")
    pen.contours(flops, mu, loss, label="loss")
    best = mu[loss.argmin(axis=0)]
    measured = best <= frame.mean_recurrence.max()
    for part, dashed in ((measured, False), (~measured, True)):
        if part.any():
            pen.line("frontier", flops[part], best[part], dashed=dashed, width=1.8)
    dots = drawing.pen(ax, "contours", CYCLE[0], ".")
    dots.points("runs", frame.train_flops, frame.mean_recurrence, size=14)
    ax.set_xlim(flops[0] / 1.1, flops[-1] * 1.1)
    ticks.of_values(ax, "y", [1, *frame.mean_recurrence])
    ticks.power(ax, "x")
    return drawing


def frontiers(table: Table, ax=None) -> Drawing:
    """The lowest loss at each budget, looped against fixed depth (mu_rec = 1)."""
    table = load.at_training_depth(table)
    table = load.need(table, ("train_flops", "mean_recurrence", "val_loss"), "frontier")
    frame, by = table.frame, load.spent_by(table)
    drawing = figures.new(
        "frontiers",
        f"Lowest loss at each compute, looped against fixed depth. Hollow: the other runs. Rows: {table.source}.",
        ax=ax,
    )
    ax = drawing.axes[0]
    ax.set(xscale="log", xlabel=words.label("train_flops"), ylabel=words.label("val_loss"))
    looped = frame.mean_recurrence > 1
    fixed = frame.mean_recurrence == 1
    for i, (name, rows) in enumerate((("fixed depth", frame[fixed]), ("looped", frame[looped]))):
        if not len(rows):
            continue
        best = rows.loc[rows.groupby(by).val_loss.idxmin()].sort_values(by)
        rest = rows.drop(best.index)
        pen = drawing.pen(ax, "frontiers", CYCLE[i], MARKERS[i])
        pen.points(name, best[by], best.val_loss, label=name)
        pen.line(name, best[by], best.val_loss, kind="guide")
        pen.points(f"{name}, other runs", rest[by], rest.val_loss, filled=False, size=10)
    ticks.power(ax, "x")
    drawing.legend(ax)
    return drawing
