"""The recurrence law: a parabola of the loss per budget, and how its minimum moves with compute.

Per budget C, loss = a + b z + c z^2 in z = log mu_rec, and again in z = log D; the minima follow
mu* = k_mu C^gamma_mu and D* = k_D C^gamma_D. Everything is linear least squares, so there is
nothing to search for. What can go wrong is the data. A minimum outside the grid of mu_rec is a
property of the parabola and not of the model: such a budget is named and left out. One that lies
inside the grid while the lowest measured loss is at its end is interpolated but not enclosed: it
is named and kept, as the published procedure does, and the exponent of the enclosed budgets alone
is reported beside it. Fewer than three enclosed minima, and no exponent follows. Both laws use the
same budgets, chosen in mu_rec, the axis the sweep designs.
Source: Parcae (arXiv:2604.12946), isoFLOP experiments.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from analysis import known
from analysis.errors import InputError
from analysis.fitting.result import FitResult, Param
from analysis.isoflop import lack_of_fit
from analysis.isoflop.parabola import MIN_RUNS, Parabola, axis_words, judged, least_squares
from analysis.isoflop.power_law import PowerLine, fit_line
from analysis.table import checks, load, numbers, units
from analysis.table.columns import LETTERS
from analysis.table.load import Table

MIN_BUDGETS = 3  # two optima determine a line and leave nothing to judge it by
FORMULA = "mu* = k_mu C^gamma_mu, D* = k_D C^gamma_D, at the minima of a parabola per budget"
_LOOPED = ("mean_recurrence", "n_tokens")  # the axes of the recurrence law


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The result and what the figures draw from."""

    result: FitResult
    parabolas: tuple[Parabola, ...]
    lines: dict[str, PowerLine]  # by axis; only where an exponent follows
    table: Table


def without_shallow(table: Table) -> Table:
    """Without what does not lie on the looped model's curve, which a parabola is drawn through.

    At mu_rec = 1 stands another architecture, the fixed-depth Transformer. With gradient through one
    loop alone (mu_rec = 2 with the paper's mu_bwd = ceil(mu/2)) a model hardly learns to loop.
    """
    if "mean_recurrence" not in table.frame:
        return table
    mu = numbers.floats(table.frame.mean_recurrence)
    if "architecture" in table.frame:
        named = table.frame.architecture.astype("str").str.strip().str.lower()
        # a looped model may be called a transformer too, and has more than one loop
        fixed = (mu == 1) & (named == "transformer")
        if fixed.any() and "budget_flops" in table.frame:
            rows = known.equal_flops(table, fixed)
            better = sum(r.gain < 0 for r in rows)
            table = table.noting(
                f"the fixed-depth Transformer is better than every looped model at {better} of "
                f"{len(rows)} budgets"
            )
        reason = "mean_recurrence=1 is the fixed-depth Transformer, another architecture"
        table, mu = table.keep(~fixed, reason), mu[~fixed].reset_index(drop=True)
    elif (mu == 1).any() and (mu > 1).any():
        table = table.noting(
            f"{int((mu == 1).sum())} rows of mu = 1 are taken for looped models: no column 'architecture' calls "
            'them "transformer". If they are fixed-depth Transformers, leave them out with --where "mu>1"'
        )
    if "mean_backprop_depth" in table.frame:
        one = (numbers.floats(table.frame.mean_backprop_depth) == 1) & (mu > 1)
        table = table.keep(~one, "gradient through one loop alone (mean_backprop_depth=1)")
    return table


def fit_recurrence(
    table: Table, confidence: float = 0.95, *, all_depths: bool = False
) -> Recurrence:
    """Parabolas per budget and axis, then the two power laws over the budgets that enclose a minimum.

    Args:
        all_depths: keep the rows that `without_shallow` leaves out.
        table: rows with budget_flops, mean_recurrence, n_tokens, val_loss; those evaluated at
            another number of loops than mean_recurrence are left out.

    Raises:
        InputError: columns or values missing, or models of different sizes mixed.
    """
    table = _with_budgets(table)
    if not all_depths:
        table = without_shallow(table)
    table = load.need(table, ("budget_flops", *_LOOPED, "val_loss"), "recurrence")
    checks.refuse_sizes(table, "recurrence")
    return _fitted(table, _LOOPED, "recurrence", FORMULA, confidence)


def fit_isoflop(table: Table, over: str = "N", confidence: float = 0.95) -> Recurrence:
    """The same over any axis: a parabola of the loss per budget, and the power law of its minima.

    D comes with it where tokens are known: C = 6 N D ties them to N. Over mu it is the recurrence law.

    Args:
        over: a letter or name of ours, or a column of the file: N, D, mu, batch, a learning rate.

    Raises:
        InputError: columns or values missing, or an axis with the same value in every row.
    """
    axis = LETTERS.get(over, over)
    if axis == "mean_recurrence":
        return fit_recurrence(table, confidence)
    table = _with_budgets(table)
    axes: tuple[str, ...] = (axis,)
    if axis != "n_tokens" and ("n_tokens" in table.frame or axis == "n_params"):
        axes = (axis, "n_tokens")
    table = load.need(table, ("budget_flops", *axes, "val_loss"), "isoflop")
    if (
        "n_tokens" in axes[1:]
        and (table.frame.groupby("budget_flops").n_tokens.nunique() == 1).all()
    ):
        axes = (axis,)  # every run of a budget saw as many tokens: there is no parabola over them
    bad = [a for a in axes if not (table.frame[a] > 0).all()]
    if bad or table.frame[axis].nunique() < 2:
        what = f"{bad[0]} holds values at or below 0" if bad else f"{axis} is the same in every row"
        raise InputError(
            f"{table.source}: {what}; isoFLOP over {over} needs different values above 0. Choose another "
            "--over, or leave rows out with --where."
        )
    letters = [axis_words(a)[0] for a in axes]
    formula = ", ".join(f"{x}* = k_{x} C^gamma_{x}" for x in letters)
    formula += f", at the minima of a parabola in log {letters[0]} per budget"
    return _fitted(table, axes, "isoflop", formula, confidence)


def _with_budgets(table: Table) -> Table:
    table = load.at_training_depth(table)
    if "budget_flops" not in table.frame:
        return table
    return table.keep(table.frame.budget_flops.notna(), "trained for tokens, not for a budget")


def _fitted(table, axes, law: str, formula: str, confidence) -> Recurrence:
    """Parabolas over the axes, the budgets chosen by the first, and the power laws."""
    problems = [*checks.disagreements(table, axes), *checks.mixtures(table, axes)]
    units.refuse_diverged(table.frame, table.source)
    seeds = checks.averaged_seeds(table, axes)
    runs, table = table, seeds.table
    parabolas = fit_parabolas(table, confidence, seeds, axes)
    first = [p for p in parabolas if p.axis == axes[0]]
    problems += lack_of_fit.far_off(first, table, runs)
    params, lines, notes = [], {}, [*table.notes]
    used = {p.budget_flops for p in first if p.interpolated}
    for axis in axes:
        own = [p for p in parabolas if p.axis == axis]
        kept = [p for p in own if p.budget_flops in used and p.optimum is not None]
        line_params, line, words, faults = _power_law(table, axis, own, kept, confidence)
        params += line_params
        notes += words
        problems += faults
        if line is not None:
            lines[axis] = line
            said, grave = lack_of_fit.bends_otherwise(table, kept, line)
            # over D, the other axis, a parabola in log mu is none
            (problems if grave and axis == axes[0] else notes).extend(said)
    letter = axis_words(axes[0])[0]
    result = FitResult(
        law=law,
        formula=formula,
        source=table.source,
        params=tuple(params),
        confidence=confidence,
        interval_method="Student t of the optima's scatter about the line; optima: Fieller, pooled residual",
        n_obs=len(table.frame),
        dropped=table.dropped,
        objective=float(sum(p.sse for p in first)),
        objective_name=f"sum of squared residuals of the parabolas in log {letter} (nats^2), closed form",
        data_sha256=table.sha256,
        flops_rule=table.flops_rule,
        tables={"optima": [asdict(p) for p in parabolas]},
        notes=tuple(notes),
        problems=tuple(dict.fromkeys(problems)),
    )
    return Recurrence(result, tuple(parabolas), lines, table)


def fit_parabolas(
    table: Table,
    confidence: float = 0.95,
    seeds: checks.Averaged | None = None,
    axes: tuple[str, ...] = _LOOPED,
) -> list[Parabola]:
    """One per budget and axis, by budget.

    The variance is pooled over an axis' budgets: of the residuals, or of the seeds where they scatter
    more than the parabolas miss.
    """
    out = []
    for axis in axes:
        fits = []
        for _, group in table.frame.groupby("budget_flops"):  # exact: 2.15e18 is not 2e18
            fits.append((float(group.budget_flops.iloc[0]), *least_squares(group, axis)))
        sse = sum(f[-1][2] for f in fits if f[-1] is not None)
        dof = sum(len(f[1]) - 3 for f in fits if f[-1] is not None)
        variance = sse / dof if dof > 0 else None
        noise = (variance, dof)
        if seeds is not None and seeds.variance is not None:
            of_means = seeds.variance / seeds.n_seeds
            if variance is None or of_means > variance:
                variance, dof = of_means, seeds.dof
        out += [judged(axis, *f, noise, (variance, dof), confidence) for f in fits]
    return out


def _power_law(table, axis, parabolas, kept, confidence):
    """Parameters, line, notes and problems of one axis; `kept` are the parabolas that may enter."""
    letter, unit = axis_words(axis)
    names = (f"gamma_{letter}", f"k_{letter}")
    enclosed = [p for p in kept if p.status == "interior"]
    words = [
        f"{p.budget_flops:.3g} FLOPs is left out of {letter}*: {p.reason or 'no optimum there'}"
        for p in parabolas
        if p not in kept
    ]
    open_ended = [
        f"{p.budget_flops:.3g} FLOPs: the grid does not enclose {letter}*: {p.reason}"
        for p in kept
        if p not in enclosed
    ]
    n_flat = sum(p.status == "flat" for p in kept)
    if len(enclosed) < MIN_BUDGETS or n_flat >= len(enclosed):
        missing = [Param(name=n, value=None, ci_low=None, ci_high=None) for n in names]
        fault = _too_few(table, letter, parabolas, len(enclosed), n_flat)
        return missing, None, [], [fault, *words, *open_ended]
    line = _line(kept, confidence)
    params = [*line.params(names, (unit, "1"))]
    if open_ended:
        strict = _line(enclosed, confidence)
        low, high = strict.gamma_interval
        name = f"gamma_{letter}_enclosed"
        params.append(Param(name=name, value=strict.gamma, ci_low=low, ci_high=high))
        words += [
            *open_ended,
            f"{name} uses only the {len(enclosed)} of {len(kept)} budgets whose minimum the grid "
            f"encloses; the difference from gamma_{letter} shows how much hangs on the others",
        ]
    return params, line, words, line.problems(f"gamma_{letter}")


def _line(parabolas, confidence) -> PowerLine:
    return fit_line([p.budget_flops for p in parabolas], [p.optimum for p in parabolas], confidence)


def _too_few(table: Table, letter: str, parabolas: list[Parabola], n_enclosed, n_flat) -> str:
    """The sentence that takes the place of an exponent."""
    found = f"{n_enclosed} of {len(parabolas)} budgets enclose a minimum of the loss over {letter}"
    n_short = sum(p.n_runs < MIN_RUNS for p in parabolas)
    if 2 * n_short > len(parabolas):
        found += f", and {n_short} have fewer than {MIN_RUNS} runs, so no exponent follows. "
        if table.kind == "sweep":  # whose budgets are the planned ones
            return f"{found}Plan at least {MIN_RUNS} runs for each budget"
        return (
            f"{found}Are these the FLOPs that each run achieved? Map the budgets that were planned, like "
            "--columns budget=COLUMN"
        )
    if n_flat >= max(n_enclosed, 1):
        return (
            f"{found}, and {n_flat} bend no more than the runs' noise makes them; an exponent needs {MIN_BUDGETS} that do, "
            f"and more of them than of the others, so none follows. Widen the grid of {letter}, or repeat the runs with "
            "more seeds"
        )
    return (
        f"{found}; an exponent needs {MIN_BUDGETS}, so none follows. Widen the grid of {letter}, or "
        "add budgets"
    )
