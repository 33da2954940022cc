"""Whether parabolas describe the runs: one run that is off, and a loss that bends otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.isoflop.parabola import MIN_RUNS, Parabola, axis_words, least_squares

if TYPE_CHECKING:
    from analysis.table.load import Table

_FAR_OFF = 8.0  # times the misfit of the other budgets' parabolas
_MANY = 7  # runs of a budget that still tell its noise when its worst one is set aside


def far_off(parabolas: list[Parabola], table: Table, runs: Table) -> list[str]:
    """A sentence for a run that alone makes its budget's parabola miss far more than those of the others.

    The others' noise is their median, so that some of them may have such a run too. Of a budget of `_MANY`
    runs it is taken without that run: then all of them may.

    Args:
        table: what the parabolas were fitted to; seeds are averaged.
        runs: the same with every seed in a row of its own.
    """
    fitted = [p for p in parabolas if p.n_runs > 3 and p.sse > 0]
    misfit = [p.sse / (p.n_runs - 3) for p in fitted]
    worst = [_worst(table, p) for p in fitted]
    alone = [left < p.sse / 10 for p, (_, left) in zip(fitted, worst, strict=True)]
    noise = [
        left / (p.n_runs - 4) if one and p.n_runs >= _MANY else own
        for p, own, one, (_, left) in zip(fitted, misfit, alone, worst, strict=True)
    ]
    out = []
    for i, own in enumerate(fitted):
        others = [v for j, v in enumerate(noise) if j != i and fitted[j].status != "none"]
        if own.n_runs <= MIN_RUNS or not others or not alone[i]:
            continue
        scale = max(float(np.median(others)), 1e-12)
        if misfit[i] >= _FAR_OFF**2 * scale:
            out.append(_named(own, worst[i][0], scale**0.5, table, runs))
    return out


def _worst(table: Table, own: Parabola) -> tuple[int, float]:
    """(index in the table, sum of squares without it) of the run without which the parabola misses least."""
    group = table.frame[table.frame.budget_flops == own.budget_flops]
    fits = {i: least_squares(group.drop(i), own.axis)[2] for i in group.index}
    return min(((i, np.inf if f is None else f[2]) for i, f in fits.items()), key=lambda v: v[1])


def _named(own: Parabola, worst: int, noise: float, table: Table, runs: Table) -> str:
    """The run in the words of the file; of several seeds the one farthest from the others' parabola."""
    group = table.frame[table.frame.budget_flops == own.budget_flops]
    setting, rest = group.loc[worst], group.drop(worst)
    _, _, (coefficients, *_) = least_squares(rest, own.axis)
    z = np.log(setting[own.axis]) - np.log(rest[own.axis]).mean()
    seeds = runs.frame[
        (runs.frame.budget_flops == own.budget_flops) & (runs.frame[own.axis] == setting[own.axis])
    ]
    row = seeds.loc[(seeds.val_loss - coefficients @ [1, z, z * z]).abs().idxmax()]
    known = "trial_id" in seeds
    leave = (
        f"{runs.called('trial_id')}!={row.trial_id}"
        if known
        else f"val_loss!={float(row.val_loss)!r}"
    )
    return (
        f"{own.budget_flops:.3g} FLOPs: {f'run {row.trial_id}, ' if known else ''}{axis_words(own.axis)[0]} = "
        f"{row[own.axis]:.4g} (loss {row.val_loss:.5g}) lies off the parabola of the others, which miss by "
        f"{noise:.2g} nats: recorded wrongly, or of another kind; correct it, or leave it out with "
        f'--where "{leave}"'
    )
