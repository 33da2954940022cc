"""Whether parabolas describe the runs: one run that is off, and a loss that bends otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.isoflop.parabola import MIN_RUNS, Parabola, axis_words, least_squares

if TYPE_CHECKING:
    from analysis.table.load import Table

_FAR_OFF = 8.0  # times the misfit of the other budgets' parabolas


def far_off(table: Table, parabolas: list[Parabola]) -> list[str]:
    """A sentence for a run that alone makes its budget's parabola miss far more than those of the others."""
    out = []
    for own in parabolas:
        others = [p for p in parabolas if p is not own and p.n_runs > 3 and p.status != "none"]
        left = sum(p.n_runs - 3 for p in others)
        if own.n_runs <= MIN_RUNS or not left:
            continue
        noise = sum(p.sse for p in others) / left
        if own.sse / (own.n_runs - 3) < _FAR_OFF**2 * max(noise, 1e-12):
            continue
        group = table.frame[table.frame.budget_flops == own.budget_flops]
        without = [least_squares(group.drop(i), own.axis)[2] for i in group.index]
        sse = np.array([np.inf if f is None else f[2] for f in without])
        if sse.min() > own.sse / 10:
            continue  # it is not one run
        row = group.iloc[int(sse.argmin())]
        name = f"run {row.trial_id}, " if "trial_id" in group else ""
        leave = (
            f"{table.called('trial_id')}!={row.trial_id}"
            if "trial_id" in group
            else f"val_loss!={float(row.val_loss)!r}"
        )
        out.append(
            f"{own.budget_flops:.3g} FLOPs: {name}{axis_words(own.axis)[0]} = {row[own.axis]:.4g} (loss "
            f"{row.val_loss:.5g}) lies off the parabola of the others, which miss by {noise**0.5:.2g} nats: recorded "
            f'wrongly, or of another kind; correct it, or leave it out with --where "{leave}"'
        )
    return out
