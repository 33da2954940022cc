"""A fit's result: values with intervals, validity with reasons, provenance, one text report.

Frozen, printable, and it round-trips through JSON. A number that could not be found is None, in a
result that says in words why and is not valid; NaN never appears.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Param:
    """One fitted number and its interval at the result's confidence."""

    name: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str = "1"
    at_bound: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Rows left out of a fit, and why."""

    reason: str
    n_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """What was fitted, on what, how it went, and what is wrong with it."""

    law: str  # registry name, "recurrence"
    formula: str  # "mu* = k_mu C^gamma_mu, ..."
    source: str  # where the rows came from, for a reader
    params: tuple[Param, ...]
    confidence: float
    interval_method: str
    n_obs: int
    dropped: tuple[Dropped, ...] = ()
    objective: float | None
    objective_name: str  # "sum of Huber(log loss residual), delta=1e-3"
    n_starts: int = 1  # of one in closed form
    n_starts_at_best: int = 1
    data_sha256: str  # of the rows used, after dropping
    r_squared: float | None = None  # of the target itself
    rmse_log: float | None = None  # of log(observed / fitted)
    largest_residual: float | None = None  # log(observed / fitted), signed
    largest_residual_row: int | None = None  # from 1, of the rows used
    residuals: tuple[float, ...] = ()  # log(observed / fitted) of every row used
    flops_rule: str | None = None  # how FLOPs were counted, where the law has any
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # plain JSON values
    notes: tuple[str, ...] = ()  # worth knowing, not a fault
    problems: tuple[str, ...] = ()  # each a full sentence; empty when valid

    def __post_init__(self) -> None:
        numbers = [self.objective]
        for p in self.params:
            numbers += [p.value, p.ci_low, p.ci_high]
        assert all(x is None or not math.isnan(x) for x in numbers), f"{self.law}: NaN in a result"
        missing = [p.name for p in self.params if p.value is None]
        assert not (missing and self.valid), f"{self.law}: {missing} missing without a problem"

    @property
    def valid(self) -> bool:
        return not self.problems

    def __getitem__(self, name: str) -> Param:
        for p in self.params:
            if p.name == name:
                return p
        raise KeyError(
            f"no parameter {name!r} in {self.law!r}; it has {', '.join(p.name for p in self.params)}"
        )

    @property
    def values(self) -> dict[str, float | None]:
        """Point estimates by name."""
        return {p.name: p.value for p in self.params}

    def to_frame(self) -> pd.DataFrame:
        """Parameters as a pandas table: value, ends of the interval, unit."""
        return frame_of(self.params)

    def to_markdown(self) -> str:
        """The same as a Markdown table, without further libraries."""
        cells = self._cells()
        rows = ["| " + " | ".join(row) + " |" for row in (cells.columns, *cells.to_numpy())]
        return "\n".join([rows[0], "|---" * len(cells.columns) + "|", *rows[1:]])

    def to_latex(self) -> str:
        """The same as a LaTeX tabular with booktabs' rules."""
        return self._cells().to_latex(index=False, escape=True, column_format="lrrr").rstrip()

    def _cells(self) -> pd.DataFrame:
        import pandas as pd

        rows = [
            (p.name, *("" if v is None else f"{v:.5g}" for v in (p.value, p.ci_low, p.ci_high)))
            for p in self.params
        ]
        return pd.DataFrame(
            rows, columns=["parameter", "value", f"low, {self.confidence:.0%}", "high"]
        )

    def _repr_html_(self) -> str:
        verdict = "valid" if self.valid else "NOT VALID: " + " ".join(map(escape, self.problems))
        head = f"<p><code>{escape(self.formula)}</code>: {self.n_obs} rows, {verdict}</p>"
        return head + html_of(self.params)

    def to_json(self) -> str:
        data = asdict(self) | {"valid": self.valid}
        return json.dumps(_finite(data), indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> FitResult:
        """Inverse of `to_json`."""
        from pydantic import TypeAdapter, ValidationError  # no fit needs it

        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            needed = ", ".join(f.name for f in fields(cls))
            raise InputError(
                f"not a fit result ({fault['msg']} {fault['loc']}); JSON with {needed} is needed, as `parcae fit "
                "--json` writes it."
            ) from error

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.write_text(self.to_json() + "\n")
        return path

    def report(self) -> str:
        """The text a person reads: values, intervals, how the search went, what is wrong."""
        verdict = "valid" if self.valid else "NOT VALID"
        lines = [f"{self.formula}   ({self.law}: {self.n_obs} rows, {verdict})"]
        width = max((len(p.name) for p in self.params), default=0)
        lines += _by_run(self) or [_line(p, width) for p in self.params]
        lines.append(f"  {self.confidence:.0%} intervals: {self.interval_method}")
        if self.objective is not None:
            lines.append(
                f"  {self.objective_name} = {self.objective:.6g}; "
                f"{self.n_starts_at_best}/{self.n_starts} starts agree"
            )
        if self.rmse_log is not None:
            r2 = "" if self.r_squared is None else f"R2 {self.r_squared:.5f}, "
            lines.append(
                f"  {r2}RMSE of the log loss {self.rmse_log:.3g}; largest residual "
                f"{self.largest_residual:+.3g} in row {self.largest_residual_row}"
            )
        lines.append(f"  source: {self.source}; data sha256 {self.data_sha256[:12]}")
        if self.flops_rule:
            lines.append(f"  FLOPs: {self.flops_rule}")
        lines += [f"  left out: {d.n_rows} rows, {d.reason}" for d in self.dropped]
        lines += [f"  note: {n}" for n in self.notes]
        lines += [f"  ! {p}" for p in self.problems]
        return "\n".join(lines)

    __str__ = report

    def summary(self) -> str:
        """One line: the exponents, or the main values, with their intervals; then the verdict."""
        shown = [p for p in self.params if p.name.startswith("gamma")] or list(self.params)
        text = "; ".join(f"{p.name} {_number(p)}" for p in shown[:6])
        more = f"; and {len(shown) - 6} more" if len(shown) > 6 else ""
        verdict = "" if self.valid else f"  NOT VALID: {self.problems[0]}"
        return f"{self.law} [{self.source}]: {text}{more}{verdict}"


def frame_of(params: tuple[Param, ...]) -> pd.DataFrame:
    """Numbers as a pandas table, by name."""
    import pandas as pd

    return pd.DataFrame([asdict(p) for p in params]).set_index("name")


def html_of(params: tuple[Param, ...]) -> str:
    """The same as a table of a page or a notebook."""
    shown = frame_of(params)[["value", "ci_low", "ci_high", "unit"]]
    return shown.to_html(float_format="{:.5g}".format, na_rep="")


def _by_run(result: FitResult) -> list[str]:
    """A law fitted run by run as a table, a row per run in the order of budget and mu; else nothing."""
    curves = result.tables.get("curves", [])
    if len(curves) < 2:
        return []
    units = {p.name.partition("[")[0]: p.unit for p in result.params}
    rows = [("run", "mu", *units)]
    for curve in curves:
        mu = curve["mean_recurrence"]
        cells = [_short(result[f"{name}[{curve['run']}]"]) for name in units]
        rows.append((str(curve["run"]), "" if mu is None else f"{mu:g}", *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  " + " ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    out, budget = [lines[0]], None
    for curve, line in zip(curves, lines[1:], strict=True):
        if curve["budget_flops"] != budget:
            budget = curve["budget_flops"]
            out.append(f"  {budget:.3g} FLOPs")
        out.append(line)
    return [*out, "  units: " + ", ".join(f"{name} {unit}" for name, unit in units.items())]


def _short(p: Param) -> str:
    if p.value is None:
        return "-"
    low, high = ("-" if x is None else _digits(x) for x in (p.ci_low, p.ci_high))
    return f"{_digits(p.value)} [{low},{high}]" + (" AT BOUND" if p.at_bound else "")


def _digits(x: float) -> str:
    return f"{x:.4g}" if abs(x) >= 1 else f"{x:.3g}"


def _line(p: Param, width: int) -> str:
    unit = f" {p.unit}" if p.unit != "1" else ""
    bound = "  AT BOUND" if p.at_bound else ""
    if p.value is None:
        return f"  {p.name:<{width}}  no estimate"
    return f"  {p.name:<{width}}  {p.value:>12.5g}  {interval(p)}{unit}{bound}"


def interval(p: Param) -> str:
    """`[low, high]` as people read it; an open side is infinite."""
    if p.ci_low is None and p.ci_high is None:
        return "[no interval]"
    low = "-inf" if p.ci_low is None else f"{p.ci_low:.5g}"
    high = "inf" if p.ci_high is None else f"{p.ci_high:.5g}"
    return f"[{low}, {high}]"


def _number(p: Param) -> str:
    return "no estimate" if p.value is None else f"{p.value:.3g} {interval(p)}"


def _finite(x: Any) -> Any:
    """Infinite bounds as the words JSON can carry."""
    if isinstance(x, float) and math.isinf(x):
        return "inf" if x > 0 else "-inf"
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(v) for v in x]
    return x
