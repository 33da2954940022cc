"""What the verbs do, as plain functions: source and names in, results out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.fitting.options import FitOptions
from analysis.fitting.result import FitResult
from analysis.laws import formula, library
from analysis.table import load as table_load
from analysis.table.columns import canonical, parse_columns

if TYPE_CHECKING:
    from analysis.laws.law import Law
    from analysis.prediction import Answer
    from analysis.report.study import Study
    from analysis.table.load import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A table and how it is read: what `--columns`, `--where` and `--drop-highest` say."""

    name: str | Path
    columns: str | dict[str, str] | None = None
    where: tuple[str, ...] = ()
    drop_highest: int = 0

    def table(self, law: str = "", own: tuple[str, ...] = ()) -> Table:
        """The rows; a law that is a formula may use the file's own columns, and so may an axis."""
        if formula.is_formula(law):
            own = (*own, *formula.names_in(law))
        return _without_highest(load(self.name, self.columns, self.where, own), self.drop_highest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What is asked of a law's parameters: `--fix`, `--tie`, `--bound`, as text or as mappings."""

    fix: str | dict[str, float] | None = None
    tie: str | dict[str, str] | None = None
    bound: str | dict[str, tuple[float, float]] | None = None

    def of(self, law: Law) -> Law:
        """The law changed.

        Raises:
            InputError: text that is no change, or a name that is no parameter of the law.
        """
        tied = _pairs(self.tie, "--tie", "alpha=beta", str)
        fixed = _pairs(self.fix, "--fix", "gamma=1", float)
        bounded = _pairs(self.bound, "--bound", "alpha=0:3", _range)
        return law.tying(**tied).fixing(**fixed).bounding(**bounded)

    def __bool__(self) -> bool:
        return bool(self.fix or self.tie or self.bound)


def law_of(text: str, table: Table, changes: Changes | None = None) -> Law:
    """A law by its name in the registry or as a formula, with parameters tied, held or bounded.

    Raises:
        InputError: an unknown name, a formula that cannot be read, a change that names no parameter.
    """
    law = formula.of_table(text, table) if formula.is_formula(text) else library.get(text)
    return (changes or Changes()).of(law)


def fit_source(
    source: str | Path,
    law: str,
    *,
    columns: str | dict[str, str] | None = None,
    where: tuple[str, ...] = (),
    drop_highest: int = 0,
    fix: str | dict[str, float] | None = None,
    tie: str | dict[str, str] | None = None,
    bound: str | dict[str, tuple[float, float]] | None = None,
    over: str | None = None,
    **options,
) -> FitResult:
    """Load a source and fit one law, by its registry name or as a formula.

    Args:
        columns: as `--columns` or as a mapping, for a file that is not a records table.
        drop_highest: leave out rows whose loss is at or above the K-th highest.
        fix: parameters held, like "gamma=1".
        tie: parameters that take one value, like "alpha=beta".
        bound: ranges, like "alpha=0:3".
        over: the axis of `isoflop`.
        options: of `FitOptions`.

    Raises:
        InputError: for anything wrong with the source, the law's name or an option.
    """
    read = Source(name=source, columns=columns, where=where, drop_highest=drop_highest)
    own = (over,) if over else ()
    table = read.table(law, own)
    return fit_table(table, law, Changes(fix=fix, tie=tie, bound=bound), over=over, **options)


def fit_table(
    table: Table, law: str, changes: Changes | None = None, over: str | None = None, **options
) -> FitResult:
    """Fit one law to a loaded table; `recurrence`, `isoflop`, `power` and `test-time` use `confidence` alone.

    Raises:
        InputError: an unknown law or option, or data the law cannot bear.
    """
    chosen = FitOptions(**options)
    if changes and law in library.OTHER_LAWS:
        raise InputError(
            f"--fix, --tie, --bound: law {law!r} is fitted in closed form and takes none."
        )
    if over is not None and law != "isoflop":
        raise InputError(f"--over {over}: only --law isoflop has an axis to choose; leave it out.")
    if law == "recurrence":
        from analysis.isoflop import bias
        from analysis.isoflop.parabolas import fit_recurrence

        return bias.judged(fit_recurrence(table, chosen.confidence)).result
    if law == "isoflop":
        from analysis.isoflop.parabolas import fit_isoflop

        return fit_isoflop(table, over or "N", chosen.confidence).result
    if law == "power":
        from analysis.isoflop.power_law import fit_power

        return fit_power(table, chosen.confidence)
    form = law_of(law, table, changes)
    if form.per_run and changes:
        raise InputError(
            f"--fix, --tie, --bound: law {law!r} is fitted to each run by itself and takes none; write it as a "
            f'formula over one run, like --law "{form.formula.split(" = ")[1].replace(" exp", "*exp").replace("z T", "z*T")}".'
        )
    if form.per_run:
        from analysis.test_time import fit_test_time

        return fit_test_time(table, law, chosen.confidence).result
    from analysis.fitting import fit

    return fit.fit_table(table, form, chosen).result


def predict_source(
    source, law: str, at: str | dict[str, float], *, columns=None, where=(), **options
) -> Answer:
    """The target of a law at a setting: {"n_params": 1e9, "n_tokens": 2e10} or "N=1e9,D=2e10"."""
    from analysis.prediction import predict

    read = Source(name=source, columns=columns, where=where).table(law)
    at = parse_setting(at) if isinstance(at, str) else at
    at = {canonical(k, "at"): v for k, v in at.items()}
    changes, options = _taken(options)
    return predict(read, law_of(law, read, changes), at, **options)


def optimal_source(source, budget: float, law: str, *, columns=None, where=(), **options) -> Answer:
    """The best setting for a budget of FLOPs: N* and D*, or mu* and D*."""
    from analysis.prediction import optimal

    read = Source(name=source, columns=columns, where=where).table(law)
    changes, options = _taken(options)
    form = law if law in library.OTHER_LAWS and not changes else law_of(law, read, changes)
    return optimal(read, budget, form, **options)


def _taken(options: dict) -> tuple[Changes, dict]:
    """fix, tie and bound apart from the fit's options."""
    changes = {n: options.pop(n) for n in ("fix", "tie", "bound") if n in options}
    return Changes(**changes), options


def study_source(
    source: str | Path, columns: str | dict[str, str] | None = None, where: tuple[str, ...] = ()
) -> Study:
    """Everything that follows from a source."""
    from analysis.report.study import study

    return study(load(source, columns, where))


def parse_setting(text: str) -> dict[str, float]:
    """`mu=8,D=1e10` as values by our names.

    Raises:
        InputError: an unknown quantity or a value that is not a number.
    """
    out = {}
    for name, value in parse_columns(text, option="--at").items():
        try:
            out[name] = float(value)
        except ValueError as error:
            raise InputError(f"--at: {name} is {value!r}; a number is needed.") from error
    return out


def judge_table(table: Table, law: str) -> dict[str, list[dict]]:
    """Whether a law holds where it was not fitted: `analysis.validate.judge`."""
    from analysis.validate import judge

    return judge(table, law)


def as_text(rows: list[dict]) -> str:
    """Rows as an aligned table."""
    import pandas as pd

    return pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="-")


def load(source, columns=None, where=(), own=()) -> Table:
    """`analysis.table.load.load`, with columns as text too."""
    if isinstance(columns, str):
        columns = parse_columns(columns)
    return table_load.load(source, columns, where, own)


def _pairs(given, option: str, example: str, read) -> dict:
    """`alpha=1,beta=2` as a mapping.

    Raises:
        InputError: a part that is not NAME=VALUE, or a name given twice.
    """
    if given is None or not isinstance(given, str):
        return dict(given or {})
    out = {}
    for part in given.split(","):
        name, sign, value = (x.strip() for x in part.partition("="))
        if name in out:
            raise InputError(f"{option}: {name} is given twice; keep one.")
        try:
            if not (sign and name and value):
                raise ValueError
            out[name] = read(value)
        except ValueError as error:
            raise InputError(
                f"{option}: {part.strip()!r} cannot be read; write it like {example}."
            ) from error
    return out


def _range(text: str) -> tuple[float, float]:
    low, sign, high = text.partition(":")
    ends = (float(low) if low else -float("inf"), float(high) if high else float("inf"))
    if not sign or not ends[0] < ends[1]:
        raise ValueError
    return ends


def _without_highest(table: Table, k: int) -> Table:
    if k == 0:
        return table
    if k < 0 or k >= len(table.frame) or "val_loss" not in table.frame:
        raise InputError(
            f"--drop-highest {k}: needs a number from 1 to {len(table.frame) - 1} and a val_loss column."
        )
    limit = table.frame.val_loss.nlargest(k).iloc[-1]
    return table.keep(
        table.frame.val_loss < limit, f"loss at or above the {k}th highest, {limit:.4f}"
    )
