"""What a law is: its terms, its parameters with bounds and start regions, and what it predicts.

A law is a sum of terms, each coefficient * exp(-exponent * x). That covers floors (no x), power laws
(x = log N), exponentials (x = T) and variables with a parameter of their own (x = log(N_once +
r^phi N_rec)); first derivatives follow exactly. A law of another shape gives `gradient` and no terms:
its value and derivatives, as `analysis.laws.formula` makes them from a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from analysis.errors import InputError, nearest

Kind = Literal["coefficient", "exponent", "shape"]
Columns = Mapping[str, np.ndarray]  # by the names of `analysis.table.columns.LAW_COLUMNS`
Variable = Callable[[Columns], np.ndarray]
# value and first derivative by the shape parameter; each (n,)
Shaped = Callable[[Columns, float], tuple[np.ndarray, np.ndarray]]
# value (n,) and its derivative (n,) by each parameter
Gradient = Callable[[Mapping[str, float], Columns], tuple[np.ndarray, dict[str, np.ndarray]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LawParam:
    """One parameter: what it is, where it may lie and where searches start.

    A coefficient of a law with terms is bounded by 0 or by nothing, and starts from linear least squares.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = "1"
    bounds: tuple[float, float] = (0.0, np.inf)
    start: tuple[float, float] = (0.1, 1.0)
    log_start: bool = False  # starts are even in the logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class LawTerm:
    """coefficient * exp(-exponent * x); x is `variable`, or `shaped` with its own parameter.

    Two terms may share an exponent, a coefficient or a shape.
    """

    coefficient: str
    exponent: str | None = None
    variable: Variable | None = None
    shape: str | None = None
    shaped: Shaped | None = None

    def x(self, columns: Columns, shape: float | None) -> np.ndarray:
        """The term's variable, (n,), at a value of its shape parameter where it has one."""
        if self.shaped is not None:
            assert shape is not None, f"{self.coefficient}: its variable has a shape parameter"
            return self.shaped(columns, shape)[0]
        assert self.variable is not None, f"{self.coefficient}: a floor has no variable"
        return np.asarray(self.variable(columns), dtype=float)


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A law of the loss (or another positive quantity) in the columns it names."""

    name: str
    formula: str
    columns: tuple[str, ...]  # needed besides the target
    params: tuple[LawParam, ...]
    source: str
    terms: tuple[LawTerm, ...] = ()
    gradient: Gradient | None = None  # in place of terms; linear in its coefficients
    constants: frozenset[str] = frozenset()  # floors of a law without terms
    target: str = "val_loss"
    per_run: bool = False  # fitted to each run by itself
    frontier: bool = False  # fitted to the lowest loss at each compute only
    # columns of the design whose cells a bootstrap draws whole, as its authors do; () for rows
    cells: tuple[str, ...] = ()
    # parameters that are fitted no more: the number each is held at, or the name of the one it equals
    changed: dict[str, float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        assert bool(self.terms) != (self.gradient is not None), f"{self.name}: terms or a gradient"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.params)

    @property
    def floors(self) -> frozenset[str]:
        """Coefficients of constant terms: at 0 they leave the rest of the law as it is."""
        return self.constants | {t.coefficient for t in self.terms if t.exponent is None}

    def whole(self, values: Mapping[str, float]) -> dict[str, float]:
        """Fitted values with those of the parameters that are held or tied."""
        out = dict(values)
        for name, by in reversed(self.changed.items()):
            out[name] = out[by] if isinstance(by, str) else by
        return out

    def predict(self, values: Mapping[str, Any], columns: Columns) -> np.ndarray:
        """The target at each row of `columns`, in the target's unit.

        Args:
            values: every parameter by name, as printed in the paper: numbers, or (S, 1) of each for (S, n).
        """
        if self.gradient is not None:
            return np.array(self.gradient(values, columns)[0], dtype=float)
        total = np.zeros(shape_of(values, columns))
        for term in self.terms:
            value: float | np.ndarray = values[term.coefficient]
            if term.exponent is not None:
                x = term.x(columns, None if term.shape is None else values[term.shape])
                value = value * np.exp(-values[term.exponent] * x)
            total += value
        return total

    def with_slopes(self, values: Mapping[str, float], columns: Columns):
        """The target (n,) at each row and its derivative (n,) by each parameter, by name.

        Values of shape (S, 1) give (S, n): S sets of parameters at once.
        """
        if self.gradient is not None:
            return self.gradient(values, columns)
        total = np.zeros(shape_of(values, columns))
        slopes = {p.name: np.zeros(total.shape) for p in self.params}
        for term in self.terms:
            c = values[term.coefficient]
            basis = np.ones(total.shape)
            if term.exponent is not None:
                shape = None if term.shape is None else values[term.shape]
                k, x = values[term.exponent], term.x(columns, shape)
                basis = np.exp(-k * x)
                slopes[term.exponent] -= c * basis * x
                if term.shape is not None:
                    assert term.shaped is not None, f"{term.shape}: no variable has this shape"
                    dx = term.shaped(columns, values[term.shape])[1]
                    slopes[term.shape] -= c * basis * k * dx
            slopes[term.coefficient] += basis
            total += c * basis
        return total, slopes

    def fixing(self, **values: float) -> Law:
        """The same law with parameters held at given values.

        Raises:
            InputError: for a name that is not a parameter of this law, or none left to fit.
        """
        if not values:
            return self
        self._refuse_unknown("--fix", tuple(values))
        if len(values) == len(self.params):
            raise InputError(f"law {self.name!r}: no parameter is left to fit; take out a --fix.")
        shapes = {p.name for p in self.params if p.kind == "shape"}
        terms: tuple[LawTerm, ...] = ()
        if not set(values) - shapes:
            terms = tuple(
                replace(t, shape=None, shaped=None, variable=_held(t.shaped, values[t.shape]))
                if t.shaped is not None and t.shape in values
                else t
                for t in self.terms
            )
        words = ", ".join(f"{k} = {v:g}" for k, v in values.items())
        return self._without(
            values, words, terms, lambda v, columns: self.with_slopes({**v, **values}, columns)
        )

    def tying(self, **names: str) -> Law:
        """The same law with each parameter named taking the value of another: alpha="beta".

        The first of the two keeps its name: of alpha=beta, alpha is fitted and printed.

        Raises:
            InputError: for a name that is not a parameter, or two of different kinds.
        """
        if not names:
            return self
        self._refuse_unknown("--tie", (*names, *names.values()))
        kinds = {p.name: p.kind for p in self.params}
        for a, b in names.items():
            if a == b or kinds[a] != kinds[b]:
                why = "twice the same" if a == b else f"a {kinds[a]} and a {kinds[b]}"
                raise InputError(f"--tie {a}={b}: {why}; tie two different parameters of one kind.")
        kept = _first_of_each(names)
        terms: tuple[LawTerm, ...] = ()
        if all(kinds[a] != "shape" for a in names):
            terms = tuple(
                replace(
                    t,
                    coefficient=kept.get(t.coefficient, t.coefficient),
                    exponent=t.exponent and kept.get(t.exponent, t.exponent),
                )
                for t in self.terms
            )

        def gradient(values, columns):
            whole = {**values, **{b: values[a] for b, a in kept.items()}}
            value, slopes = self.with_slopes(whole, columns)
            slopes = dict(slopes)
            for b, a in kept.items():
                slopes[a] = slopes[a] + slopes.pop(b)
            return value, slopes

        return self._without(
            kept, ", ".join(f"{b} = {a}" for b, a in kept.items()), terms, gradient
        )

    def _without(
        self,
        gone: Mapping[str, float | str],
        words: str,
        terms: tuple[LawTerm, ...],
        gradient: Gradient,
    ) -> Law:
        """The law without parameters that are held or tied: as terms, or by its gradient where there are none."""
        return replace(
            self,
            terms=terms,
            constants=self.constants if terms else self.floors - set(gone),
            gradient=None if terms else gradient,
            params=tuple(p for p in self.params if p.name not in gone),
            formula=f"{self.formula}, {words}",
            changed={**self.changed, **gone},
        )

    def bounding(self, **bounds: tuple[float, float]) -> Law:
        """The same law with other bounds; starts are drawn inside them."""
        self._refuse_unknown("--bound", tuple(bounds))
        law = self
        if {t.coefficient for t in self.terms if t.exponent is not None} & set(bounds):
            # terms search a coefficient where its variable is average; a bound is on the printed one
            law = replace(self, terms=(), constants=self.floors, gradient=self.with_slopes)
        params = []
        for p in self.params:
            if p.name in bounds:
                start, log = start_inside(bounds[p.name], p.start, p.log_start)
                p = replace(p, bounds=bounds[p.name], start=start, log_start=log)
            params.append(p)
        return replace(law, params=tuple(params))

    def _refuse_unknown(self, option: str, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.names:
                raise InputError(
                    f"{option}: law {self.name!r} has no parameter {name!r}{nearest(name, self.names)}; it "
                    f"has {', '.join(self.names)}."
                )


def shape_of(values: Mapping[str, float], columns: Columns) -> tuple[int, ...]:
    """(n,), or (S, n) where the values are (S, 1)."""
    n = len(next(iter(columns.values())))
    return np.broadcast_shapes((n,), *map(np.shape, values.values()))


def start_inside(bounds, start, log: bool = False) -> tuple[tuple[float, float], bool]:
    """Where to start within bounds, and whether by decades: all of a closed range, else near `start`."""
    low, high = bounds
    if np.isfinite(low) and np.isfinite(high):
        return (low, high), bool(low > 0 and high / low > 100)
    near = float(np.clip(start[0], low, high)), float(np.clip(start[1], low, high))
    if near[0] < near[1]:
        return near, log
    edge = low if np.isfinite(low) else high
    inward = edge + (1 if np.isfinite(low) else -1) * max(abs(edge), 1.0)
    return (min(edge, inward), max(edge, inward)), False


def _first_of_each(names: Mapping[str, str]) -> dict[str, str]:
    """Of a=b,c=b or a=b,b=c: each parameter that goes, and the one that stands for it."""
    kept: dict[str, str] = {}

    def first(name: str) -> str:
        return first(kept[name]) if name in kept else name

    for a, b in names.items():
        if first(a) != first(b):
            kept[first(b)] = first(a)
    return {b: first(b) for b in kept}


def _held(shaped: Shaped, value: float) -> Variable:
    return lambda columns: shaped(columns, value)[0]
