"""Figures of a corpus whose floor is known: equal FLOPs, and the loss by gap as loops are added."""

from __future__ import annotations

from analysis import known
from analysis.errors import InputError
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import CYCLE, MARKERS, MU, Drawing, Pen
from analysis.table.table import Table

_MAX_CURVES = 7


def equal_flops(table: Table, ax=None) -> Drawing:
    """Fixed depth and the best looped model at each budget, with the floor drawn in."""
    rows = _compared(table)
    drawing = figures.new(
        "equal_flops",
        "Validation loss of the fixed-depth Transformer and of the best looped model of the same "
        "layers, for equal training FLOPs, mean over seeds; beside each, its mean recurrence.",
        ax=ax,
    )
    [ax] = drawing.axes
    ax.set(xscale="log", xlabel=words.label("budget_flops"), ylabel=words.label("val_loss"))
    budgets = [r.budget_flops for r in rows]
    fixed, looped = [r.fixed_loss for r in rows], [r.looped_loss for r in rows]
    for i, (label, losses) in enumerate((("fixed depth", fixed), ("looped", looped))):
        pen = drawing.pen(ax, color=CYCLE[i], marker=MARKERS[i])
        pen.line(label, budgets, losses, kind="measured")
        pen.points(label, budgets, losses, label=label)
    for r in rows:
        text = f"{MU} {r.mean_recurrence:g}"
        place = (r.budget_flops, r.looped_loss)
        ax.annotate(text, place, (0, -10), textcoords="offset points", fontsize=7, ha="center")
    if rows[0].floor is not None:
        floor = [rows[0].floor] * len(rows)
        pen = drawing.pen(ax)
        pen.line("floor", budgets, floor, dashed=True, label="floor, known", kind="known")
    ticks.power(ax, "x")
    drawing.legend(ax)
    return drawing


def loss_by_gap(table: Table, ax=None) -> Drawing:
    """The model thinks longer and is right: loss of a state by gap, for more and more loops.

    The looped model is the best of the largest budget, the same weights throughout; beside it the
    fixed-depth model of that budget.
    """
    top = _compared(table)[-1]
    looped = known.by_gap(table, top.budget_flops, top.mean_recurrence)
    drawing = figures.new(
        "loss_by_gap",
        f"Loss of a revealed state above what can be known, by the number of actions composed, at "
        f"{top.budget_flops:.3g} FLOPs. One looped model, trained at a mean recurrence of "
        f"{top.mean_recurrence:g}, read out after T loops; and the fixed-depth Transformer. A guess among "
        "the states lies at their logarithm; where the longest gap is near, the loss above the floor is "
        "of a surprise that few rows teach: that the gap must end.",
        ax=ax,
    )
    [ax] = drawing.axes
    ax.set(xscale="log", xlabel="gap: actions since the last revealed state")
    ax.set_ylabel("loss above the floor (nats)")
    shown = [n for n in (1, 2, 4, 8, 16, 32) if n in set(looped.n_loops)][:_MAX_CURVES]
    for i, (n_loops, color) in enumerate(zip(shown, figures.shades(len(shown)), strict=True)):
        rows = looped[looped.n_loops == n_loops]
        pen = drawing.pen(ax, color=color, marker=MARKERS[i % len(MARKERS)])
        _curve(pen, f"T = {n_loops}", rows)
    fixed = known.by_gap(table, top.budget_flops, 1)
    _curve(drawing.pen(ax, color=CYCLE[0], marker="<"), "fixed depth", fixed, dashed=True)
    ticks.of_values(ax, "x", [1, 2, 4, 8, 16, 32])
    drawing.legend(ax, columns=4)
    return drawing


def _compared(table: Table) -> list[known.EqualFlops]:
    rows = known.equal_flops(table)
    if not rows:
        raise InputError(
            f"{table.source}: no budget has both a fixed-depth and a looped model; add 1 to "
            "mean_recurrence in the spec."
        )
    return rows


def _curve(pen: Pen, label: str, rows, *, dashed=False) -> None:
    pen.line(label, rows.gap, rows.excess, dashed=dashed, kind="measured")
    pen.points(label, rows.gap, rows.excess, label=label)
