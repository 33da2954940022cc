"""What the grid does to a parabola's vertex, beyond noise.

The loss along a budget is not a parabola in log mu or log N: it is steeper on one side. On a wide grid, or
one whose middle is far from the minimum, the vertex is therefore off even without noise. Over mu, how far
is computed from the training law fitted to the same runs, and said with the recurrence law.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.errors import InputError
from analysis.fitting.fit import fit_table
from analysis.isoflop import parabolas
from analysis.isoflop.parabola import axis_words
from analysis.isoflop.parabolas import Parabola, Recurrence
from analysis.laws import library
from analysis.prediction import MU_GRID, flops_per_token, sizes
from analysis.table import load
from analysis.table.load import Table

BIASED = 0.1  # a vertex off by more than this share of the optimum is named
OFF_CENTRE = 0.5  # of the half-width of the grid in log mu
WIDE = 16.0  # ratio of the grid's ends; the paper's is 6


def judged(found: Recurrence) -> Recurrence:
    """The law with what its grid does to it: notes and, over mu, the table `parabola_bias`."""
    axis = found.parabolas[0].axis
    own = [p for p in found.parabolas if p.axis == axis and p.optimum is not None]
    own = [p for p in own if p.status != "flat"]  # where such a vertex lies means nothing
    notes = [words for p in own if (words := _shape_of_grid(p))]
    tables = dict(found.result.tables)
    if axis == "mean_recurrence":
        try:
            values = fit_table(found.table, library.get("training"), interval="none").params
            tables["parabola_bias"] = parabola_bias(values, found.table)
            notes += _biases(tables["parabola_bias"], values["x"])
        except InputError as error:
            notes.append(f"the bias of the parabolas on this grid is not quantified: {error}")
    result = replace(found.result, tables=tables, notes=(*found.result.notes, *notes))
    return replace(found, result=result)


def _biases(rows: list[dict], exponent: float) -> list[str]:
    notes = []
    for row in rows:
        if row["bias"] is None or row["status"] == "outside" or abs(row["bias"]) <= BIASED:
            continue
        if row["true_optimum"] <= MU_GRID[0]:
            where = f"at {row['vertex']:.3g} loops where the optimum is one loop"
        else:
            side = "above" if row["bias"] > 0 else "below"
            where = f"{abs(row['bias']):.0%} {side} the optimum of {row['true_optimum']:.3g} loops"
        notes.append(
            f"{row['budget_flops']:.3g} FLOPs: were the training law fitted to these runs true (x = "
            f"{exponent:.3g}), the parabola's vertex on this grid would lie {where}, noise apart"
        )
    return notes


def _shape_of_grid(p: Parabola) -> str:
    assert p.optimum is not None, f"{p.budget_flops:g} FLOPs: {p.reason}"
    low, high, vertex = np.log(p.low), np.log(p.high), np.log(p.optimum)
    place = (vertex - (low + high) / 2) / ((high - low) / 2)
    faults = []
    if OFF_CENTRE < abs(place) <= 1:
        faults.append(
            f"its vertex lies {abs(place):.0%} of the way from the middle to the "
            f"{'upper' if place > 0 else 'lower'} end"
        )
    if p.high / p.low > WIDE:
        faults.append(f"its ends differ by a factor of {p.high / p.low:.3g}")
    if not faults:
        return ""
    return (
        f"{p.budget_flops:.3g} FLOPs: the grid of {axis_words(p.axis)[0]}, {p.low:.4g} to {p.high:.4g}, is "
        f"{'off-centre or ' if len(faults) > 1 else ''}{'wide' if 'factor' in faults[-1] else 'off-centre'}"
        f" ({'; '.join(faults)}), where a parabola is biased"
    )


def parabola_bias(values: dict[str, float], table: Table) -> list[dict]:
    """How far a parabola's vertex lies from the true minimum of a known training law, per budget.

    The loss along a budget is not a parabola in log mu; on a wide or off-centre grid its vertex is
    off even without noise. Evaluated on the grid that was run.
    """
    law = library.get("training")
    table = load.at_training_depth(table)
    table = load.need(
        table, ("mean_recurrence", "train_flops", "budget_flops", *law.columns), "training"
    )
    total, core = sizes(table)
    cost = flops_per_token(table)
    frame = table.frame.assign(val_loss=law.predict(values, load.columns_of(table, law.columns)))
    noiseless = parabolas.fit_parabolas(
        load.Table(frame=frame, source="law", kind="points", origin="law")
    )
    rows = []
    for p in noiseless:
        if p.axis != "mean_recurrence":
            continue
        grid = {
            "n_params_unrolled": total + (MU_GRID - 1) * core,
            "n_tokens": p.budget_flops / cost(MU_GRID),
        }
        truth = float(MU_GRID[law.predict(values, grid).argmin()])
        rows.append(
            {
                "budget_flops": p.budget_flops,
                "true_optimum": truth,
                "vertex": p.optimum,
                "bias": None if p.optimum is None else p.optimum / truth - 1,
                "status": p.status,
            }
        )
    return rows
