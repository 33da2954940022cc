"""Figures of learning curves: what was logged over training, and the envelope with its law."""

from __future__ import annotations

from analysis import curves as learning
from analysis.curves import Curves
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import MARKERS, Drawing
from analysis.fitting.fit import Fit

_NAMED = 12  # runs in a legend, at most


def curves(found: Curves, over: str | None = None, ax=None) -> Drawing:
    """Training loss, learning rate, spectral radius and state norm of every run, those that were logged.

    Args:
        over: train_flops or n_tokens; without it, what the runs are ordered by.
    """
    over = over or found.axis
    shown = [c for c in learning.SHOWN if c in found.frame and found.frame[c].notna().any()]
    drawing = figures.new(
        "curves",
        f"Learning curves of {len(found.runs)} runs: {', '.join(found.labels[c] for c in shown)}; the darkest "
        f"has the most {'compute' if found.axis == 'train_flops' else 'tokens'}. Losses are running means; markers: validation loss. Rows: {found.source}.",
        n_panels=len(shown),
        columns=2,
        ax=ax,
    )
    runs = found.runs
    for panel, column in zip(drawing.axes, shown, strict=True):
        panel.set(xscale="log", xlabel=words.label(over), ylabel=found.labels[column])
        for i, ((run, rows), color) in enumerate(zip(runs, figures.shades(len(runs)), strict=True)):
            if column == "loss":
                rows = learning.averaged(rows)
            rows = rows.dropna(subset=[column])
            label = run if len(runs) <= _NAMED else None
            pen = drawing.pen(panel, column, color)
            pen.line(run, rows[over], rows[column], width=0.8, label=label, kind="measured")
            if column == "loss" and "validation" in rows:
                own = rows.dropna(subset=["validation"])
                pen = drawing.pen(panel, "val_loss", color, MARKERS[i % len(MARKERS)])
                pen.points(run, own[over], own.validation, size=16)
        ticks.of_quantity(panel, "x", over, found.frame[over])
    drawing.axes[0].set_ylim(top=float(found.frame.loss.quantile(0.98)))
    drawing.legend(drawing.axes[0], columns=3)
    return drawing


def envelope(found: Curves, fitted: Fit, ax=None, to: float | None = None) -> Drawing:
    """The smoothed curves, their lower envelope, and the law through it."""
    law, rows = fitted.law, fitted.dataset.table.frame
    drawing = figures.new(
        "envelope",
        f"Smoothed {found.what}es of {len(found.runs)} runs and their lower envelope (dots), with "
        f"{words.formula(law.formula)}. Dashed: extrapolation. Rows: {found.source}.",
        ax=ax,
    )
    [panel] = drawing.axes
    panel.set(xscale="log", xlabel=words.label("train_flops"), ylabel=found.labels["loss"])
    runs = found.runs
    for (run, every), color in zip(runs, figures.shades(len(runs)), strict=True):
        smooth = learning.smoothed(every)
        pen = drawing.pen(panel, "curves", color)
        pen.line(run, smooth.train_flops, smooth.loss, width=0.7, kind="measured")
    dots = drawing.pen(panel, "envelope", figures.CYCLE[0])
    dots.points("envelope", rows.train_flops, rows.val_loss, size=8)
    low, high = rows.train_flops.min(), rows.train_flops.max()
    for grid, dashed in figures.spans(low, high, to, 80):
        values = fitted.predict({"train_flops": grid})
        drawing.pen(panel, "law").line(law.name, grid, values, dashed=dashed)
    panel.set_ylim(top=float(rows.val_loss.max()) * 1.05)
    ticks.power(panel, "x")
    return drawing
