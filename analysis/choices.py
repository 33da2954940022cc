"""What the options that all verbs share say: how a source is read, which law is meant, how it is changed.

The command line and the Python door both come through here, so that an option means one thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError, nearest
from analysis.fitting.options import FitOptions
from analysis.laws import expression, formula, library
from analysis.laws.law import Law
from analysis.table import guess, numbers, units
from analysis.table import load as table_load
from analysis.table.columns import info, parse_columns, written
from analysis.table.load import Table

if TYPE_CHECKING:
    import pandas as pd

# of the same runs, with a loss at a setting
_VALUED = {"recurrence": "training", "isoflop": "chinchilla"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a table is read: `--columns`, `--where`, `--drop-highest`, `--unit`.

    The highest losses are left out of the rows that a law uses, once they are chosen.
    """

    columns: str | dict[str, str] | None = None
    where: tuple[str, ...] = ()
    drop_highest: int = 0
    unit: str | None = None

    def table(
        self, source: str | Path | pd.DataFrame, *laws: str | None, own: tuple[str, ...] = ()
    ) -> Table:
        """The rows of a source; a law that is a formula may use the file's own columns, and so may an axis."""
        for law in laws:
            if law is not None and expression.is_formula(law):
                own = (*own, *expression.names_in(law))
        columns = self.columns
        if isinstance(columns, str):
            columns = parse_columns(columns)
        where = (self.where,) if isinstance(self.where, str) else tuple(self.where)
        table = table_load.load(source, columns, where, own, self.unit)
        return replace(table, drop_highest=self.drop_highest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What is asked of a law's parameters: `--fix`, `--tie`, `--bound`, as text or as mappings."""

    fix: str | dict[str, float] | None = None
    tie: str | dict[str, str] | None = None
    bound: str | dict[str, tuple[float, float]] | None = None

    def of(self, law: Law) -> Law:
        """The law changed."""
        if not self:
            return law
        if law.per_run:
            form = law.formula.split(" = ")[1].replace(" exp", "*exp").replace("z T", "z*T")
            raise InputError(
                f"--fix, --tie, --bound: law {law.name!r} is fitted to each run by itself and takes none; write "
                f'it as a formula over one run, like --law "{form}".'
            )
        tied = _pairs(self.tie, "--tie", "alpha=beta", str)
        fixed = _pairs(self.fix, "--fix", "gamma=1", _finite)
        bounded = _pairs(self.bound, "--bound", "alpha=0:3", _range)
        return law.tying(**tied).fixing(**fixed).bounding(**bounded)

    def __bool__(self) -> bool:
        return bool(self.fix or self.tie or self.bound)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """All of it, as one verb was asked."""

    reading: Reading = Reading()
    changes: Changes = Changes()
    over: str | None = None  # the axis of `isoflop`
    fitting: dict[str, Any] = field(default_factory=dict)  # of FitOptions, where given

    @classmethod
    def of(cls, **given: Any) -> Choices:
        """From options by name, each of `Reading`, `Changes`, `FitOptions`, or `over`.

        Raises:
            InputError: an option that is none of these, or a value that cannot be.
        """
        over = given.pop("over", None)
        names = [[f.name for f in fields(kind)] for kind in (Reading, Changes, FitOptions)]
        known = [name for part in names for name in part]
        for name in given:
            if name not in known:
                raise InputError(
                    f"{name!r} is no option{nearest(name, known)}. Options: {', '.join(known)}."
                )
        reading, changes, fitting = ({n: given[n] for n in part if n in given} for part in names)
        FitOptions(**fitting)
        return cls(
            reading=Reading(**reading), changes=Changes(**changes), over=over, fitting=fitting
        )

    @property
    def options(self) -> FitOptions:
        return FitOptions(**self.fitting)

    def table(self, source: str | Path | pd.DataFrame, *laws: str | None) -> Table:
        """The rows of a source, with the axis and the names of formulas among its columns."""
        return self.reading.table(source, *laws, own=(self.over,) if self.over else ())

    def law_of(self, table: Table, *, valued: bool = False) -> str:
        """The law that a table looks like; the one of minima over an axis, where one is chosen.

        Args:
            valued: one that gives a loss at a setting.
        """
        law = "isoflop" if self.over else law_of(table)
        return _VALUED.get(law, law) if valued else law

    def refuse_unused(self, law: str) -> None:
        """Of options of a fit, a law without a search of its own takes the confidence alone."""
        for f in fields(FitOptions):
            value = self.fitting.get(f.name, f.default)
            if f.name != "confidence" and value != f.default:
                raise InputError(
                    f"--{f.name.removeprefix('n_')} {value}: law {law!r} takes --confidence alone of the options of "
                    "a fit; leave it out."
                )

    def law(self, text: str, table: Table) -> Law | str:
        """A `Law`, changed as asked; the name alone of one that is fitted in closed form.

        Raises:
            InputError: an unknown law, or a change or an axis that it does not take.
        """
        if self.over is not None and text != "isoflop":
            raise InputError(
                f"--over {self.over}: only --law isoflop has an axis to choose; leave it out."
            )
        if text in library.OTHER_LAWS:
            if self.changes:
                raise InputError(
                    f"--fix, --tie, --bound: law {text!r} is fitted in closed form and takes none."
                )
            return text
        form = formula.of_table(text, table) if expression.is_formula(text) else library.get(text)
        return self.changes.of(form)


def law_of(table: Table) -> str:
    """The law that a table looks like."""
    law = guess.law_of({str(n): table.frame[n] for n in table.frame})
    of_one = law in ("data-only", "params-only", "frontier")
    if law and not (of_one and {"n_params", "n_tokens", "train_flops"} & set(table.unsure)):
        return law
    others = f"; others are {', '.join(table.unmapped)}" if table.unmapped else ""
    from_these = ", ".join(table.frame.columns) or "no column of ours"
    found = f"{table.source}: no law follows from {from_these}{others}. "
    if table.unsure:
        name, choice = next(iter(table.unsure.items()))
        example = written(table.columns, **{name: choice[0]})
        cure = f"{' and '.join(choice)} may both be {info(name)[0]}: say which, like {example}."
    elif "val_loss" not in table.frame and (other := units.named(table.unmapped)):
        cure = f"{other[0]!r} is taken with --unit {other[1]}."
    elif "val_loss" not in table.frame:
        example = written(table.columns, val_loss="COLUMN")
        cure = f"Map the loss, like {example}; or name a law with --law."
    else:
        step = next((c for c in table.unmapped if c.lower().endswith("step")), "")
        example = written(table.columns, n_tokens=f"{step}*NUMBER" if step else "COLUMN")
        example += ", NUMBER being the tokens of a step" if step else ""
        cure = f"Map tokens, parameters or FLOPs, like {example}; or name a law with --law."
    raise InputError(found + cure)


def _pairs(given, option: str, example: str, read) -> dict:
    """`alpha=1,beta=2` as a mapping."""
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


def _finite(text: str) -> float:
    if not math.isfinite(value := _number(text)):
        raise ValueError
    return value


def _number(text: str) -> float:
    """A number as people type it, 88T."""
    if (value := numbers.one(text)) is None:
        raise ValueError
    return value


def _range(text: str) -> tuple[float, float]:
    low, sign, high = text.partition(":")
    ends = (_number(low) if low else -math.inf, _number(high) if high else math.inf)
    if not sign or not ends[0] < ends[1]:
        raise ValueError
    return ends
