"""Figures of the parametric laws: contours, observed against predicted, profiles, frontiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis import prediction
from analysis.figures import drawing as figures
from analysis.figures.drawing import CYCLE, MARKERS, Drawing
from analysis.table import load

if TYPE_CHECKING:
    from analysis.fitting.fit import Fit
    from analysis.table.load import Table


def observed(fitted: Fit) -> Drawing:
    """Observed against predicted loss, and the relative error along compute or rows."""
    law, data, result = fitted.law, fitted.dataset, fitted.result
    y, predicted = data.target, fitted.predict(data.columns)
    error = 100 * (predicted / y - 1)
    drawing = figures.new(
        f"observed_{law.name}",
        f"{law.formula}: observed against predicted loss, and the error of each row. "
        f"Mean absolute error {np.abs(error).mean():.3g} %. Rows: {result.source}.",
        n_panels=2,
    )
    left, right = drawing.axes
    left.set(xlabel="predicted loss (nats per token)", ylabel="observed loss (nats per token)")
    right.set(xlabel="predicted loss (nats per token)", ylabel="predicted / observed - 1 (%)")
    ends = np.array([min(y.min(), predicted.min()), max(y.max(), predicted.max())])
    drawing.line(left, "observed", "equality", ends, ends, kind="reference")
    drawing.line(right, "error", "equality", ends, np.zeros(2), kind="reference")
    frame = data.table.frame
    depths = frame.mean_recurrence.to_numpy(float) if "mean_recurrence" in frame else None
    groups = [None] if depths is None else sorted(set(depths))
    for i, depth in enumerate(groups):
        rows = slice(None) if depth is None else depths == depth
        name = "rows" if depth is None else f"mu {depth:g}"
        style = {
            "color": figures.shades(len(groups))[i],
            "marker": MARKERS[i % len(MARKERS)],
            "label": name,
        }
        drawing.points(left, "observed", name, predicted[rows], y[rows], **style)
        drawing.points(right, "error", name, predicted[rows], error[rows], **style)
    drawing.legend(left)
    return drawing


def profiles(fitted: Fit) -> Drawing:
    """How much worse the fit gets as each parameter is held away from its best value."""
    law, confidence = fitted.law, fitted.options.confidence
    drawing = figures.new(
        f"profiles_{law.name}",
        f"{law.formula}: profile likelihoods. Dashed: the limit of the {confidence:.0%} interval; a "
        f"curve that never crosses it leaves the parameter open. Rows: {fitted.dataset.table.source}.",
        n_panels=len(law.params),
        columns=4,
    )
    for ax, p in zip(drawing.axes, law.params, strict=True):
        found = fitted.profile(p.name)
        near = found.deviance <= 4 * found.limit
        ax.set(xlabel=p.name, ylabel="deviance")
        values = found.values[near]
        if p.kind == "coefficient" and values[-1] > 10 * values[0]:
            ax.set_xscale("log")
        drawing.line(ax, p.name, "profile", values, found.deviance[near])
        ends, limit = values[[0, -1]], [found.limit] * 2
        drawing.line(ax, p.name, "limit", ends, limit, color=CYCLE[5], dashed=True, kind="limit")
    return drawing


def contours(fitted: Fit) -> Drawing:
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
    )
    ax = drawing.axes[0]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="training compute (FLOPs)",
        ylabel="mean recurrence (loops)",
    )
    drawing.contours(ax, "contours", flops, mu, loss, label="loss")
    best = mu[loss.argmin(axis=0)]
    measured = best <= frame.mean_recurrence.max()
    for part, dashed in ((measured, False), (~measured, True)):
        if part.any():
            drawing.line(
                ax, "contours", "frontier", flops[part], best[part], dashed=dashed, width=1.8
            )
    drawing.points(
        ax,
        "contours",
        "runs",
        frame.train_flops,
        frame.mean_recurrence,
        color=CYCLE[5],
        marker=".",
        size=14,
    )
    figures.log_ticks(ax, "y", frame.mean_recurrence)
    return drawing


def frontiers(table: Table) -> Drawing:
    """The lowest loss at each budget, looped against fixed depth (mu_rec = 1).

    Raises:
        InputError: columns missing.
    """
    table = load.at_training_depth(table)
    table = load.need(table, ("train_flops", "mean_recurrence", "val_loss"), "frontier")
    frame = table.frame
    by = (
        "budget_flops"
        if "budget_flops" in frame and frame.budget_flops.notna().all()
        else "train_flops"
    )
    drawing = figures.new(
        "frontiers",
        f"Lowest loss at each compute, looped against fixed depth. Hollow: the other runs. Rows: {table.source}.",
    )
    ax = drawing.axes[0]
    ax.set(
        xscale="log", xlabel="training compute (FLOPs)", ylabel="validation loss (nats per token)"
    )
    for i, (name, rows) in enumerate(
        (
            ("fixed depth", frame[frame.mean_recurrence == 1]),
            ("looped", frame[frame.mean_recurrence > 1]),
        )
    ):
        if not len(rows):
            continue
        best = rows.loc[rows.groupby(by).val_loss.idxmin()].sort_values(by)
        rest = rows.drop(best.index)
        style = {"color": CYCLE[i], "marker": MARKERS[i]}
        drawing.points(ax, "frontiers", name, best[by], best.val_loss, label=name, **style)
        drawing.line(ax, "frontiers", name, best[by], best.val_loss, color=CYCLE[i], kind="guide")
        drawing.points(
            ax,
            "frontiers",
            f"{name}, other runs",
            rest[by],
            rest.val_loss,
            filled=False,
            size=10,
            **style,
        )
    drawing.legend(ax)
    return drawing
