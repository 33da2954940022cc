"""What a law is: its terms, its parameters with bounds and start regions, and what it predicts.

A law is a sum of terms, each coefficient * exp(-exponent * x). That covers floors (no x), power laws
(x = log N), exponentials (x = T) and variables with a parameter of their own (x = log(N_once +
r^phi N_rec)); first derivatives follow exactly. A law of another shape gives `function` and no
terms: its derivatives are then taken numerically.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.errors import InputError

Columns = Mapping[str, np.ndarray]  # by the names of `analysis.table.columns.LAW_COLUMNS`
Variable = Callable[[Columns], np.ndarray]
# value and first derivative by the shape parameter; each (n,)
Shaped = Callable[[Columns, float], tuple[np.ndarray, np.ndarray]]
Function = Callable[[Mapping[str, float], Columns], np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class LawParam:
    """One parameter: what it is, where it may lie and where searches start.

    A coefficient of a law with terms is bounded by 0 or by nothing, and starts from linear least squares.
    """

    name: str
    kind: Literal["coefficient", "exponent", "shape"]
    meaning: str
    unit: str = "1"
    bounds: tuple[float, float] = (0.0, np.inf)
    start: tuple[float, float] = (0.1, 1.0)


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
    function: Function | None = None  # of parameters and columns, in place of terms
    target: str = "val_loss"
    per_run: bool = False  # fitted to each run by itself
    frontier: bool = False  # fitted to the lowest loss at each compute only

    def __post_init__(self) -> None:
        assert bool(self.terms) != (self.function is not None), f"{self.name}: terms or a function"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.params)

    @property
    def floors(self) -> frozenset[str]:
        """Coefficients of constant terms: at 0 they leave the rest of the law as it is."""
        return frozenset(t.coefficient for t in self.terms if t.exponent is None)

    def predict(self, values: Mapping[str, float], columns: Columns) -> np.ndarray:
        """The target at each row of `columns`, in the target's unit.

        Args:
            values: every parameter by name, as printed in the paper.
        """
        size = len(next(iter(columns.values())))
        if self.function is not None:
            return np.broadcast_to(self.function(values, columns), size).astype(float)
        total = np.zeros(size)
        for term in self.terms:
            value: float | np.ndarray = values[term.coefficient]
            if term.exponent is not None:
                x = term.x(columns, None if term.shape is None else values[term.shape])
                value = value * np.exp(-values[term.exponent] * x)
            total += value
        return total

    def fixing(self, **values: float) -> Law:
        """The same law with shape parameters held at given values.

        Raises:
            InputError: for a name that is not a shape parameter of this law.
        """
        shapes = [p.name for p in self.params if p.kind == "shape"]
        for name in values:
            if name not in shapes:
                can = f"can fix {', '.join(shapes)}" if shapes else "has none that can be fixed"
                raise InputError(f"law {self.name!r}: cannot fix {name!r}; it {can}.")
        if not values:
            return self
        terms = tuple(
            replace(t, shape=None, shaped=None, variable=_held(t.shaped, values[t.shape]))
            if t.shaped is not None and t.shape in values
            else t
            for t in self.terms
        )
        held = ", ".join(f"{k} = {v:g}" for k, v in values.items())
        params = tuple(p for p in self.params if p.name not in values)
        return replace(self, terms=terms, params=params, formula=f"{self.formula}, {held}")


def _held(shaped: Shaped, value: float) -> Variable:
    return lambda columns: shaped(columns, value)[0]
