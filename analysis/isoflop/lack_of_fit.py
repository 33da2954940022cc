"""Whether parabolas describe the runs: one run that is off, and a loss that bends otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import fdtrc

from analysis.isoflop.parabola import MIN_RUNS, Parabola, axis_words, least_squares
from analysis.isoflop.power_law import PowerLine, fit_line
from analysis.table.load import Table

_FAR_OFF = 8.0  # times the misfit of the other budgets' parabolas
_BENT = 1e-3  # p of the F test
_SHIFTED = 0.1  # minima off by more than this share make the law a problem
_SAID = 0.02  # and by more than this a note
_AT = 0.95  # of the interval; what is a problem does not hang on the confidence asked for
_TWO_DIGITS = 0.01  # exponents are quoted so
_EXACT = 1e-6  # of the loss; a misfit below it is none
_MANY = 6  # runs of a budget that still tell its noise when its worst one is set aside


def far_off(parabolas: list[Parabola], table: Table, runs: Table) -> list[str]:
    """A sentence for a run that alone makes its budget's parabola miss far more than those of the others.

    The others' noise is their median, so that some of them may have such a run too; where a budget of `_MANY`
    runs misses as much less without one of them, it is taken without: then all of them may.

    Args:
        table: what the parabolas were fitted to; seeds are averaged.
        runs: the same with every seed in a row of its own.
    """
    fitted = [p for p in parabolas if p.n_runs > 3 and p.sse > 0]
    misfit = [p.sse / (p.n_runs - 3) for p in fitted]
    worst = [_worst(table, p) for p in fitted]
    noise = []
    for p, miss, (_, left) in zip(fitted, misfit, worst, strict=True):
        rest = left / (p.n_runs - 4) if p.n_runs >= _MANY else miss
        noise.append(rest if miss > _FAR_OFF**2 * rest else miss)
    out = []
    for i, own in enumerate(fitted):
        others = [v for j, v in enumerate(noise) if j != i and fitted[j].status != "none"]
        if own.n_runs <= MIN_RUNS or not others or worst[i][1] > own.sse / 10:
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
    fit = least_squares(rest, own.axis)[2]
    assert fit is not None, f"{own.budget_flops:g} FLOPs: _worst fitted the rest"
    z = np.log(setting[own.axis]) - np.log(rest[own.axis]).mean()
    seeds = runs.frame[
        (runs.frame.budget_flops == own.budget_flops) & (runs.frame[own.axis] == setting[own.axis])
    ]
    row = seeds.loc[(seeds.val_loss - fit[0] @ [1, z, z * z]).abs().idxmax()]
    run, leave = "", f"val_loss!={float(row.val_loss)!r}"
    if "trial_id" in seeds:
        run, leave = f"run {row.trial_id}, ", f"{runs.called('trial_id')}!={row.trial_id}"
    return (
        f"{own.budget_flops:.3g} FLOPs: {run}{axis_words(own.axis)[0]} = "
        f"{row[own.axis]:.4g} (loss {row.val_loss:.5g}) lies off the parabola of the others, which miss by "
        f"{noise:.2g} nats: recorded wrongly, or of another kind; correct it, or leave it out with "
        f'--where "{leave}"'
    )


def bends_otherwise(table: Table, kept: list[Parabola], line: PowerLine) -> tuple[list[str], bool]:
    """Whether a cubic or quartic term shared by all budgets fits better: a sentence, and whether it moves the law.

    The term itself is no better law (its minima hold the truth no more often); it shows how much hangs on the
    parabola. It moves the law where the exponent leaves its interval or the minima move by a tenth.

    Args:
        kept: the parabolas that the line goes through, all of one axis.
    """
    axis = kept[0].axis
    curves = {}
    for budget, group in table.frame.groupby("budget_flops"):
        values, loss, fit = least_squares(group, axis)
        if fit is not None:
            curves[budget] = np.log(values) - np.log(values).mean(), loss
    order, shared, p = _shared(list(curves.values()))
    if not order:
        return [], False
    moved = [_minimum(*curves[own.budget_flops], shared) for own in kept]
    minima = np.exp(np.array(moved) + [own.centre for own in kept])
    gamma = fit_line([own.budget_flops for own in kept], minima, line.confidence).gamma
    shift = float(np.exp(np.mean(np.log(minima) - np.log([_at(own) for own in kept]))) - 1)
    low, high = replace(line, confidence=_AT).gamma_interval
    change = abs(gamma - line.gamma)
    outside = change > _TWO_DIGITS and not low <= gamma <= high
    letter = axis_words(axis)[0]
    words = (
        f"lack of fit: along log {letter} the loss bends otherwise than a parabola (a term of order {order} shared "
        f"by all budgets, F test: p = {p:.1g}); with it gamma_{letter} is {gamma:.3g}, {'outside' if outside else 'in'} "
        f"its {_AT:.0%} interval [{low:.3g}, {high:.3g}], and the minima lie {abs(shift):.0%} {'higher' if shift > 0 else 'lower'}"
    )
    if outside or abs(shift) > _SHIFTED:
        cure = f"leave out with --where what lies far from the minima in {letter}, or tune these runs better"
        return [f"{words}: {cure}"], True
    return [words] if change > _TWO_DIGITS or abs(shift) > _SAID else [], False


def _at(own: Parabola) -> float:
    assert own.optimum is not None, f"{own.budget_flops:g} FLOPs: {own.reason}"
    return own.optimum


def _shared(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, np.ndarray, float]:
    """(order, coefficients of z^3 on, p) of the highest term that fits better by an F test; order 0: none does."""
    bases = [np.linalg.qr(np.vander(z, 3))[0] for z, _ in curves]

    def left(columns):
        return np.concatenate([v - q @ (q.T @ v) for v, q in zip(columns, bases, strict=True)])

    losses = np.concatenate([loss for _, loss in curves])
    residual = left([loss for _, loss in curves])
    found = 0, np.zeros(0), 1.0
    squares, terms = float(residual @ residual), []
    for order in (3, 4):
        terms.append(left([z**order for z, _ in curves]))
        dof = len(residual) - 3 * len(curves) - len(terms)
        if dof < 1 or squares < len(losses) * (_EXACT * np.abs(losses).mean()) ** 2:
            break
        design = np.column_stack(terms)
        coefficients = np.linalg.lstsq(design, residual, rcond=None)[0]
        rest = float(((residual - design @ coefficients) ** 2).sum())
        p = float(fdtrc(1, dof, (squares - rest) / (rest / dof))) if rest > 0 else 0.0
        if p < _BENT:
            found = order, coefficients, p
        squares = rest
    return found


def _minimum(z: np.ndarray, loss: np.ndarray, shared: np.ndarray) -> float:
    """Where the parabola of a budget has its minimum between the ends of the grid, given the shared terms."""
    higher = np.concatenate([shared[::-1], np.zeros(3)])
    own = np.polyfit(z, loss - np.polyval(higher, z), 2)
    places = np.linspace(z.min(), z.max(), 4001)
    return float(places[np.polyval(np.polyadd(higher, own), places).argmin()])
