"""Does a law hold? Errors on budgets it has not seen, forms against each other, single runs' weight.

Training error always favours the law with more parameters; these are the comparisons that do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.errors import InputError
from analysis.fitting import intervals
from analysis.fitting.dataset import Dataset, prepare
from analysis.fitting.fit import fit
from analysis.fitting.objective import huber
from analysis.fitting.options import FitOptions
from analysis.isoflop import bias, parabolas
from analysis.laws import library
from analysis.laws.law import Law
from analysis.table.columns import info
from analysis.table.load import Table
from analysis.test_time import runs_of, usable

_FORMS = "test-time forms"
_BRIEF = 6  # curves on which a page compares the forms
DELTA = 1e-3  # of the Huber errors compared, as in the paper's table


def judge(table: Table, law: str | Law, *, brief: bool = False, **options) -> dict[str, list[dict]]:
    """The judgements that fit a law: name of the table -> rows.

    Args:
        brief: for a page: few curves, and no other law for comparison.
        options: of `FitOptions`; intervals are not made here.
    """
    if law == "recurrence":
        return {"exponents without one budget": leave_one_budget_out(table)}
    chosen = library.get(law) if isinstance(law, str) else law
    law = chosen.name
    settings = FitOptions(**options | {"interval": "none"})
    if chosen.per_run:
        return _forms(table, settings.n_starts) if brief else {_FORMS: compare_forms(table)}
    heaviest = influence(table, chosen, settings)[:10]
    tables = {"weight of single rows (jackknife, standard errors)": heaviest}
    ahead = _or_why(lambda: held_out_largest(table, chosen, settings))
    if ahead:
        tables = {"errors on the largest held out": ahead} | tables
    if "budget_flops" not in table.frame:
        return tables
    held = _or_why(lambda: held_out_budgets(table, chosen, settings))
    held = held or [{"reason": f"without a budget no rows are left that bear the {law} law"}]
    tables = {"errors on a budget held out": held} | tables
    if law in ("training", "iso-depth") and not brief:
        tables["laws of the same rows compared"] = compare_laws(table, n_starts=settings.n_starts)
    if law == "training":
        values = chosen.whole(fit(prepare(table, chosen), chosen, settings).params)
        title = "bias of the parabola on this grid, were the law true"
        tables[title] = _or_why(lambda: bias.parabola_bias(values, table))
    return tables


def _or_why(judgement: Callable[[], list[dict]]) -> list[dict]:
    """A judgement's rows; one that the table does not allow says why, and the others stand."""
    try:
        return judgement()
    except InputError as error:
        return [{"reason": str(error)}]


def _forms(table: Table, n_starts: int) -> dict[str, list[dict]]:
    """The forms compared on few curves, from few starts."""
    runs = _curves(table)
    if len(runs) <= _BRIEF:
        return {_FORMS: compare_forms(table, n_starts=n_starts)}
    title = f"{_FORMS}, of {_BRIEF} of the {len(runs)} curves"
    chosen = [runs[i] for i in np.linspace(0, len(runs) - 1, _BRIEF).round().astype(int)]
    return {title: compare_forms(table, chosen, n_starts)}


def held_out_budgets(table: Table, law: Law, options: FitOptions | None = None) -> list[dict]:
    """Relative error on each budget when fitted to the others, and on the largest from the smaller.

    Raises:
        InputError: without budgets, or with fewer than three.
    """
    options = options or FitOptions(interval="none", n_starts=8)
    data = prepare(table, law)
    table = data.table
    if "budget_flops" not in table.frame or table.frame.budget_flops.nunique() < 3:
        raise InputError(
            f"{table.source}: holding a budget out needs budget_flops with three values or more."
        )
    budgets = table.frame.budget_flops.to_numpy(float)
    rows = []
    for budget in np.unique(budgets):
        seen = budgets != budget
        if seen.sum() <= len(law.params):
            continue
        rows.append(
            {"held_out_flops": float(budget), "extrapolates": bool(budget == budgets.max())}
            | _held_out(data, seen, law, options)
        )
    return rows


def held_out_largest(table: Table, law: Law, options: FitOptions) -> list[dict]:
    """Relative error on the largest value of each column of the law, fitted to the smaller ones."""
    data = prepare(table, law)
    rows = []
    for name in law.columns:
        values = data.columns[name]
        seen = values < values.max() * (1 - 1e-9)
        if len(np.unique(values[seen])) < 2 or seen.sum() <= len(law.params):
            continue
        found = {"held_out": f"{info(name)[0]} = {values.max():.4g}"}
        rows.append(found | _held_out(data, seen, law, options))
    return rows


def _held_out(data: Dataset, seen: np.ndarray, law: Law, options: FitOptions) -> dict:
    fitted = fit(data.take(seen), law, options)
    gone = data.take(~seen)
    error = fitted.predict(gone.columns) / gone.target - 1
    return {
        "n_rows": int((~seen).sum()),
        "mean_error": float(error.mean()),
        "mean_abs_error": float(np.abs(error).mean()),
    }


def leave_one_budget_out(table: Table) -> list[dict]:
    """The recurrence exponents without each budget in turn; None where none follows."""
    found = parabolas.fit_recurrence(table)
    rows = []
    for budget in sorted({p.budget_flops for p in found.parabolas}):
        rest = found.table.keep(found.table.frame.budget_flops != budget, "held out")
        without = parabolas.fit_recurrence(rest).result
        exponents = {n: without[n].value for n in ("gamma_mu", "gamma_D")}
        rows.append({"without_flops": budget, **exponents})
    return rows


def compare_forms(table: Table, runs: list | None = None, n_starts: int = 8) -> list[dict]:
    """The test-time forms on every run: all loops, T > mu after a fit to T <= mu, and AICc.

    Errors are mean Huber (delta 1e-3) of log-loss residuals per point, averaged over runs.
    Source: Parcae (arXiv:2604.12946), comparison of test-time forms.
    """
    runs = runs or _curves(table)
    if not runs:
        raise InputError(
            f"{table.source}: no run has six numbers of loops; comparing forms needs that many."
        )
    rows = []
    for name in library.TEST_TIME_FORMS:
        law = library.get(name)
        scores = [_score(law, loops, losses, mu, n_starts) for loops, losses, mu in runs]
        ahead = [s["ahead"] for s in scores if s["ahead"] is not None]
        rows.append(
            {
                "law": name,
                "formula": law.formula,
                "n_runs": len(runs),
                "mean_huber": float(np.mean([s["all"] for s in scores])),
                "mean_huber_beyond_mu": float(np.mean(ahead)) if ahead else None,
                "n_runs_beyond_mu": len(ahead),
                "aicc": _where_finite(float(sum(s["aicc"] for s in scores))),
            }
        )
    return sorted(rows, key=lambda r: r["mean_huber"])


def compare_laws(table: Table, n_starts: int = 16) -> list[dict]:
    """The laws of training rows against each other: AICc, and errors on budgets held out.

    AICc is of least squares on log loss; a lower one by 10 leaves the other law hardly any support
    (Burnham & Anderson 2002, section 2.6). A law that the rows cannot bear is listed with the reason.
    """
    rows = []
    for name in ("training", "iso-depth"):
        law = library.get(name)
        row: dict[str, float | str | None] = {"law": name, "n_params": len(law.params)}
        try:
            options = FitOptions(loss="log-lsq", interval="none", n_starts=n_starts)
            fitted = fit(prepare(table, law), law, options)
            n = len(fitted.dataset)
            row["reason"] = ""
            aicc = _aicc(2 * fitted.search.objective, n, len(law.params))
            row["aicc"] = _where_finite(aicc)
            settings = FitOptions(interval="none", n_starts=min(n_starts, 8))
            held = held_out_budgets(table, law, settings)
            errors = [h["mean_abs_error"] for h in held]
            row["mean_abs_error"] = float(np.mean(errors)) if errors else None
            ahead = [h["mean_abs_error"] for h in held if h["extrapolates"]]
            row["largest_budget_error"] = ahead[0] if ahead else None
            if row["aicc"] is None or not held:
                row["reason"] = f"{n} rows are too few for AICc, or for a fit without a budget"
        except InputError as error:
            row |= {"aicc": None, "mean_abs_error": None, "largest_budget_error": None}
            row["reason"] = str(error)
        rows.append(row)
    return rows


def influence(table: Table, law: Law, options: FitOptions | None = None) -> list[dict]:
    """What leaving out each row does to each parameter, in units of its spread over all of these.

    A jackknife: the spread is its standard error, so that 1 means "this row moves it by one".
    """
    fitted = fit(prepare(table, law), law, options or FitOptions(interval="none"))
    n, table = len(fitted.dataset), fitted.dataset.table
    draws, _ = intervals.refits(fitted.objective, fitted.theta, 1 - np.eye(n))
    natural = np.array([list(fitted.objective.natural(theta).values()) for theta in draws])
    whole = np.array(list(fitted.params.values()))
    for i, p in enumerate(law.params):  # a coefficient spans decades, unless it reaches 0
        if p.kind == "coefficient" and min(natural[:, i].min(), whole[i]) > 0:
            natural[:, i], whole[i] = np.log(natural[:, i]), np.log(whole[i])
    shift = natural - whole
    error = np.sqrt((n - 1) / n * ((natural - natural.mean(axis=0)) ** 2).sum(axis=0))
    moved = shift / np.maximum(error, 1e-300)
    order = np.argsort(-np.abs(moved).max(axis=1))
    shown = ("trial_id", "budget_flops", "mean_recurrence", "n_loops")
    names = [c for c in shown if c in table.frame]
    return [
        {c: _plain(table.frame[c].iloc[i]) for c in names}
        | {"row": int(i) + 1}
        | {p.name: float(moved[i, j]) for j, p in enumerate(law.params)}
        for i in order
    ]


def _curves(table: Table):
    """(loops, losses, mu) of every run whose loss falls over six or more numbers of loops."""
    table, twice = usable(table, "test-time")
    out = []
    for run, rows in runs_of(table):
        if str(run) in twice:
            continue
        rows = rows.sort_values("n_loops")
        loops, losses = np.array(rows.n_loops, dtype=float), np.array(rows.val_loss, dtype=float)
        if len(np.unique(loops)) >= 6 and losses[-1] < losses[0]:
            mu = rows.mean_recurrence.iloc[0] if "mean_recurrence" in rows else None
            out.append((loops, losses, mu))
    return out


def _score(law: Law, loops, losses, mu, n_starts: int) -> dict:
    options = FitOptions(loss="log-lsq", interval="none", n_starts=n_starts)

    def fitted(mask):
        found = fit(Dataset.of({"n_loops": loops[mask]}, losses[mask]), law, options)
        return np.log(found.predict({"n_loops": loops}) / losses)

    everything = np.ones(len(loops), dtype=bool)
    r = fitted(everything)
    aicc = _aicc(float(r @ r), len(r), len(law.params))
    ahead = None
    if mu is not None:
        seen = loops <= mu
        if seen.sum() > len(law.params) and (~seen).sum() >= 1:
            ahead = float(huber(fitted(seen)[~seen], DELTA).mean())
    return {"all": float(huber(r, DELTA).mean()), "ahead": ahead, "aicc": aicc}


def _aicc(squares: float, n: int, n_params: int) -> float:
    """From a sum of squared residuals; the variance counts as a parameter too."""
    k = n_params + 1
    correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
    return float(n * np.log(max(squares / n, 1e-300)) + 2 * k + correction)


def _where_finite(value: float) -> float | None:
    """AICc does not exist for so few rows that it is infinite; JSON has no such number."""
    return value if np.isfinite(value) else None


def _plain(value):
    return value if isinstance(value, str) else float(value)
