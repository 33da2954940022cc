"""A law that the user types: `E + A*N**-alpha + B*D**-beta`.

`analysis.laws.expression` reads it. Names that are columns are columns, all others are parameters. A
formula that is a sum of coefficient * power or exponential becomes `LawTerm`s, with all that the fitter
does for those; any other is fitted through its derivatives.

    column      N, D, C, mu, T, N_mu, ..., our long names, or a column of the file
    coefficient a factor of its own in a summand: not negative, and solved for linearly
    exponent    in **: not negative where it is written with a minus, like N**-alpha
    scale       divides a column or is divided by one, like (N_c/N): positive, started about the column
    rate        multiplies one in exp, like exp(-k*N): of any sign, started about 1 / the column
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.errors import InputError, nearest
from analysis.laws.expression import Node, names_in, parsed, tree_of
from analysis.laws.law import Columns, Kind, Law, LawParam, LawTerm, shape_of
from analysis.table import load
from analysis.table.columns import LAW_COLUMNS, LETTERS, info
from analysis.table.load import Table

# Columns where the table has them, else parameters
_FREE = ("x", "y", "weight", "trial_id", "seed")


def law(
    text: str,
    columns: Mapping[str, str],
    *,
    name: str = "formula",
    data: Columns | None = None,
    params: tuple[LawParam, ...] = (),
    there: tuple[str, ...] = (),
    source: str = "typed by the user",
    **fields,
) -> Law:
    """The law of a formula.

    Args:
        columns: what a name in the formula means: name -> column of the table.
        data: columns of the rows to fit, for starts at their scale.
        params: all parameters in the order to print, where their meanings and starts are known.
        there: every name that could be a column, for messages; without it, those of `columns`.
        fields: of `Law`.

    Raises:
        InputError: text that is no formula, an unknown function, no parameter or no column.
    """
    target, tree = parsed(text)
    node = tree_of(tree, columns, text)
    _check_names(node, target, columns, text)
    known = tuple(p.name for p in params) or node.parameters
    there = there or tuple(columns)
    if not params:
        _refuse_misspelt(node, there, text)
    if not known:
        raise InputError(f"--law {text!r}: every name is a column, so there is nothing to fit.")
    if not node.names("column"):
        raise InputError(
            f"--law {text!r}: none of {', '.join(known)} is a column, so nothing can be fitted. Columns "
            f"here: {', '.join(there)}."
        )
    fields.setdefault("target", columns.get(target, target) if target else "val_loss")
    if not params:
        _refuse_undetermined(node, text)
    roles = _roles(node)
    terms = _terms(node)
    own = params or tuple(_parameter(n, roles[n], data) for n in known)
    common = {
        "name": name,
        "formula": text,
        "columns": node.names("column"),
        "source": source,
        **fields,
    }
    if terms is not None:
        kinds = _kinds(terms)
        own = tuple(replace(p, kind=kinds[p.name]) for p in own)
        return Law(**common, terms=tuple(terms), params=own)
    floors = (s.name for sign, s in _summands(node) if sign > 0 and s.op == "parameter")
    return Law(**common, params=own, gradient=_gradient(node), constants=frozenset(floors))


def of_table(text: str, table: Table) -> Law:
    """The law of a formula in the columns of a table.

    Raises:
        InputError: as `law`; a letter such as D always means its column, which the table must have.
    """
    known = {}
    for n in names_in(text):
        ours = LETTERS.get(n, n)
        if n in table.frame:
            known[n] = n
        elif ours in table.frame or (ours in LAW_COLUMNS and ours not in _FREE):
            known[n] = ours
    target = parsed(text)[0]
    used = tuple(dict.fromkeys(c for n, c in known.items() if n != target))
    there = tuple(dict.fromkeys([*(info(str(n))[0] for n in table.frame), *table.unmapped]))
    data = load.columns_of(load.need(table, used, text), used)
    return law(text, known, data=data, there=there)


def _refuse_misspelt(node: Node, there: tuple[str, ...], text: str) -> None:
    """A base with an exponent to fit, X**-beta, is meant as a column: as a parameter nothing would tell the two apart."""
    if node.op == "**" and node.args[0].op == "parameter" and node.args[1].parameters:
        name = node.args[0].name
        if not node.args[1].names("column"):
            raise InputError(
                f"--law {text!r}: {name} is no column of the table{nearest(name, there) or '.'} Columns here: "
                f"{', '.join(there)}. A name that is no column is a parameter, and a parameter to the power of "
                "another cannot be fitted."
            )
    for part in node.args:
        _refuse_misspelt(part, there, text)


def _refuse_undetermined(node: Node, text: str) -> None:
    """Parameters whose effects are one, whatever the columns hold: E + F, a*b*N.

    Source of the test: the Jacobian at random points and columns has a direction without effect.
    """
    rng = np.random.default_rng(0)
    names, never = node.parameters, set(node.parameters)
    for _ in range(4):
        columns = {c: np.exp(rng.uniform(0.1, 3.0, 64)) for c in node.names("column")}
        values = {n: float(rng.uniform(0.1, 1.5)) for n in names}
        _, slopes = _gradient(node)(values, columns)
        jacobian = np.stack([slopes[n] for n in names], axis=1)
        if not np.isfinite(jacobian).all():
            continue
        size = np.linalg.norm(jacobian, axis=0)
        _, spread, directions = np.linalg.svd(jacobian / np.maximum(size, 1e-300))
        flat = directions[spread < 1e-11 * spread[0]]
        never &= {
            n
            for n, share in zip(names, np.abs(flat).max(axis=0, initial=0), strict=True)
            if share > 1e-3
        }
    if not never or len(never) == len(names) > 6:
        return
    those = [n for n in names if n in never]
    if len(those) == 1:
        fault, cure = f"no column determines {those[0]}", "take it out"
    else:
        fault = f"{' and '.join(those)} always act together and no column tells them apart"
        cure = f"write one parameter for them, or hold {those[-1]} as a number"
    raise InputError(f"--law {text!r}: {fault}; {cure}.")


def _gradient(node: Node):
    """Value (n,) and derivatives (n,) by name, finite wherever a search may look."""

    def gradient(values, columns):
        size = shape_of(values, columns)
        with np.errstate(all="ignore"):
            value, slopes = node.at(values, columns)
        return np.broadcast_to(value, size), {
            k: np.broadcast_to(v, size) for k, v in slopes.items()
        }

    return gradient


def _check_names(node: Node, target: str, columns, text: str) -> None:
    meant = columns.get(target, target) if target else "val_loss"
    if meant in node.names("column"):
        raise InputError(
            f"--law {text!r}: {target or 'loss'} is what the law gives and stands in the formula too; name "
            "what it gives on the left, like accuracy = a/(1 + exp(k*(loss - m)))."
        )
    if target and target in node.parameters:
        raise InputError(
            f"--law {text!r}: {target} is used twice, left of = and as a parameter; rename one."
        )


# -- what each parameter is


@dataclass(frozen=True, slots=True)
class _Role:
    kind: str  # coefficient, exponent, scale, rate or free
    signed: bool = False  # may be negative
    # what a scale is compared with, or a rate multiplies; without parameters
    beside: Node | None = None


def _summands(node: Node, sign: float = 1.0) -> list[tuple[float, Node]]:
    if node.op in ("+", "-"):
        left, right = node.args
        return _summands(left, sign) + _summands(right, sign if node.op == "+" else -sign)
    if (inner := _minus(node)) is not None:
        return _summands(inner, -sign)
    return [(sign, node)]


def _factors(node: Node, power: int = 1) -> list[tuple[int, Node]]:
    """(1 or -1, factor) of a product."""
    if node.op in ("*", "/"):
        left, right = node.args
        return _factors(left, power) + _factors(right, power if node.op == "*" else -power)
    return [(power, node)]


def _roles(node: Node) -> dict[str, _Role]:
    """What each parameter is, by where it stands first."""
    out: dict[str, _Role] = {}
    for c in _coefficients(node):
        out[c] = _Role("coefficient")

    def visit(n: Node, exponent: str = "") -> None:
        if n.op == "parameter":
            if exponent:
                out.setdefault(n.name, _Role("exponent", signed=exponent == "+"))
            out.setdefault(n.name, _Role("free", signed=True))
        elif n.op == "exp" and (rate := _rate(n.args[0]))[0] and not rate[1].parameters:
            out.setdefault(rate[0][1], _Role("rate", signed=True, beside=rate[1]))
        elif n.op == "**":
            visit(n.args[0])
            minus = _minus(n.args[1])
            visit(n.args[1] if minus is None else minus, "-" if minus is not None else "+")
        elif n.op == "/":
            for own, other in (n.args, n.args[::-1]):
                if own.op == "parameter" and not other.parameters and other.names("column"):
                    out.setdefault(own.name, _Role("scale", beside=other))
            for a in n.args:
                visit(a, exponent)
        else:
            for a in n.args:
                visit(a, exponent if n.op in "*+-" else "")

    visit(node)
    return out


def _coefficients(node: Node) -> list[str]:
    """Parameters in which the formula is linear, all of them at once: one bare factor of a summand."""
    places = _counts(node)
    found: list[str] = []
    bare: dict[str, int] = {}
    for _, summand in _summands(node):
        own = [f.name for p, f in _factors(summand) if f.op == "parameter" and p == 1]
        single = [n for n in dict.fromkeys(own) if own.count(n) == 1]
        if single:
            bare[single[0]] = bare.get(single[0], 0) + 1
            found.append(single[0])
    return [n for n in dict.fromkeys(found) if bare[n] == places[n]]


def _counts(node: Node) -> dict[str, int]:
    out = {node.name: 1} if node.op == "parameter" else {}
    for a in node.args:
        for n, k in _counts(a).items():
            out[n] = out.get(n, 0) + k
    return out


def _minus(node: Node) -> Node | None:
    """What -node is, where it is written with a minus."""
    if node.op == "*" and node.args[0].op == "number" and node.args[0].number == -1.0:
        return node.args[1]
    return None


def _parameter(name: str, role: _Role, data: Columns | None) -> LawParam:
    size = _typical(role.beside, data)
    turn = 10 / size  # e^10 over the column is as much as a law turns
    bounds, start = {
        "coefficient": ((0.0, np.inf), (0.1, 1.0)),
        "exponent": ((-10.0, 10.0), (-0.5, 0.5)) if role.signed else ((0.0, 10.0), (0.05, 1.0)),
        "scale": ((size * 1e-12, np.inf), (size * 1e-2, size * 1e4)),
        "rate": ((-np.inf, np.inf), (-turn, turn)),
        "free": ((-np.inf, np.inf), (-2.0, 2.0)),
    }[role.kind]
    return LawParam(
        name=name,
        kind="coefficient" if role.kind == "coefficient" else "shape",
        meaning=role.kind,
        bounds=bounds,
        start=start,
        log_start=role.kind == "scale",
    )


def _typical(node: Node | None, data: Columns | None) -> float:
    if node is None or data is None:
        return 1.0
    with np.errstate(all="ignore"):
        size = np.median(np.abs(node.at({}, data)[0]))
    return float(size) if np.isfinite(size) and size > 0 else 1.0


# -- sums of coefficient * exp(-exponent * x)


def _terms(node: Node) -> list[LawTerm] | None:
    """The formula as terms, or None where it has another shape."""
    terms = []
    for sign, summand in _summands(node):
        term = _term(summand) if sign > 0 else None
        if term is None:
            return None
        terms.append(term)
    c = {t.coefficient for t in terms}
    k = {t.exponent for t in terms} - {None}
    s = {t.shape for t in terms} - {None}
    return None if c & k or c & s or k & s else terms


def _kinds(terms: list[LawTerm]) -> dict[str, Kind]:
    out: dict[str, Kind] = {t.shape: "shape" for t in terms if t.shape is not None}
    out |= {t.exponent: "exponent" for t in terms if t.exponent is not None}
    out |= {t.coefficient: "coefficient" for t in terms}
    return out


def _term(summand: Node) -> LawTerm | None:
    factors = _factors(summand)
    bare = [f for f in factors if f[1].op == "parameter" and f[0] == 1]
    rest = [f for f in factors if f not in bare]
    if len(bare) != 1 or len(rest) > 1:
        return None
    c = bare[0][1].name
    if not rest:
        return LawTerm(coefficient=c)
    power, factor = rest[0]
    if factor.op == "**":
        base, exponent = factor.args
        found = _signed_parameter(exponent)
        x = Node("log", (base,))
    elif factor.op == "exp":
        found, x = _rate(factor.args[0])
    else:
        return None
    if found is None:
        return None
    sign, k = found
    return _of_variable(c, k, x, -sign * power)


def _signed_parameter(node: Node) -> tuple[float, str] | None:
    minus = _minus(node)
    inner = node if minus is None else minus
    return (1.0 if minus is None else -1.0, inner.name) if inner.op == "parameter" else None


def _rate(node: Node):
    """(sign, parameter) and what it multiplies, of k*x, -k*x, -x/... with one bare factor k."""
    sign = 1.0
    factors = []
    for power, f in _factors(node):
        if f.op == "number" and f.number == -1.0:
            sign = -sign
        else:
            factors.append((power, f))
    bare = [f for f in factors if f[0] == 1 and f[1].op == "parameter"]
    if not bare:
        return None, None
    rest = list(factors)
    rest.remove(bare[0])
    x = Node("number", number=1.0)
    for power, f in rest:
        x = Node("*" if power > 0 else "/", (x, f))
    return ((sign, bare[0][1].name), x) if x.names("column") else (None, None)


def _of_variable(c: str, k: str, x: Node, sign: float) -> LawTerm | None:
    """c exp(-k sign x), where x has no parameter or one of its own."""
    own = x.parameters
    if len(own) > 1 or c in own or k in own or not x.names("column"):
        return None
    if not own:
        return LawTerm(
            coefficient=c, exponent=k, variable=lambda columns: sign * x.at({}, columns)[0]
        )

    def shaped(columns, value):
        at, slope = x.at({own[0]: value}, columns)
        return sign * at, sign * np.broadcast_to(slope[own[0]], np.shape(at))

    return LawTerm(coefficient=c, exponent=k, shape=own[0], shaped=shaped)
