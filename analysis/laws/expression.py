"""What a user types as a formula, as a tree: `E + A*N**-alpha + B*D**-beta`.

Python's `ast` reads the text, a white list turns it into a small tree, and the tree gives values and
exact first derivatives (forward mode); nothing is ever evaluated as code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from analysis.errors import InputError, nearest
from analysis.laws.law import Columns

# value, derivative by the argument given argument and value
_FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "exp": (np.exp, lambda x, y: y),
    "log": (np.log, lambda x, y: 1 / x),
    "log10": (np.log10, lambda x, y: 1 / (x * np.log(10))),
    "log2": (np.log2, lambda x, y: 1 / (x * np.log(2))),
    "log1p": (np.log1p, lambda x, y: 1 / (1 + x)),
    "expm1": (np.expm1, lambda x, y: y + 1),
    "sqrt": (np.sqrt, lambda x, y: 0.5 / y),
    "tanh": (np.tanh, lambda x, y: 1 - y * y),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x, y: y * (1 - y)),
}
_CHOICES = {"min": np.less_equal, "max": np.greater_equal}  # the first argument where this holds
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, a number, a column or a parameter of a formula."""

    op: str  # "number", "column", "parameter", + - * / **, or a function's name
    args: tuple[Node, ...] = ()
    name: str = ""
    number: float = 0.0

    def names(self, op: str) -> tuple[str, ...]:
        """Names of its columns or parameters, each once, in the order of the text."""
        own = (self.name,) if self.op == op else ()
        return tuple(dict.fromkeys((*own, *(n for a in self.args for n in a.names(op)))))

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.names("parameter")

    def at(self, values: Mapping[str, float], columns: Columns):
        """Value (n,) or a number, and its derivative by each parameter in it."""
        if self.op == "number":
            return self.number, {}
        if self.op == "column":
            return np.asarray(columns[self.name], dtype=float), {}
        if self.op == "parameter":
            return np.float64(values[self.name]), {self.name: np.float64(1.0)}
        x, dx = self.args[0].at(values, columns)
        if self.op in _FUNCTIONS:
            function, slope = _FUNCTIONS[self.op]
            y = function(x)
            return y, {n: slope(x, y) * d for n, d in dx.items()} if dx else {}
        y, dy = self.args[1].at(values, columns)
        if self.op in _CHOICES:
            first = _CHOICES[self.op](x, y)
            return np.where(first, x, y), _join(dx, dy, first, ~np.asarray(first))
        if self.op in "+-":
            sign = 1.0 if self.op == "+" else -1.0
            return x + sign * y, _join(dx, dy, 1.0, sign)
        if self.op == "*":
            return x * y, _join(dx, dy, y, x)
        if self.op == "/":
            return x / y, _join(dx, dy, 1 / y, -x / (y * y))
        power = np.power(x, y, dtype=float)
        by_base = y * np.power(x, y - 1.0, dtype=float) if dx else 0.0
        return power, _join(dx, dy, by_base, power * np.log(x) if dy else 0.0)


def _join(dx, dy, by_x, by_y):
    out = {n: by_x * d for n, d in dx.items()}
    for n, d in dy.items():
        out[n] = out[n] + by_y * d if n in out else by_y * d
    return out


def is_formula(text: str) -> bool:
    """Whether a `--law` is a formula and not a name."""
    return re.search(r"[-+*/^()=]", re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", "", text)) is not None


def names_in(text: str) -> tuple[str, ...]:
    """Every name of a formula but the functions', in order; the target's with them."""
    target, tree = parsed(text)
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    found = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    return tuple(dict.fromkeys([*([target] if target else []), *found]))


def parsed(text: str) -> tuple[str, ast.expr]:
    """The target's name, or "", and the tree of the right-hand side."""
    target, sign, right = text.partition("=")
    if not sign:
        target, right = "", text
    called = re.match(r"\s*(\w+)\s*\(", target)
    if called and called[1] in (*_FUNCTIONS, *_CHOICES):
        raise InputError(
            f"--law {text!r}: {called[1]} stands left of =, where the name of a column is needed; turn the formula round, "
            "like loss = exp(...) for log(loss) = ..."
        )
    target = re.sub(r"\(.*\)", "", target).strip()  # L(N, D) = ...
    if target and not target.isidentifier():
        raise InputError(f"--law {text!r}: {target!r} left of = is not the name of a column.")
    try:
        tree = ast.parse(right.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"--law {text!r}: not a formula{_place(error)}; write it like E + A*N**-alpha + B*D**-beta."
        ) from error
    return ("" if target in ("L", "loss") else target), tree


def _place(error: Exception) -> str:
    """Where Python stopped reading, or "" where it does not say."""
    text, offset = getattr(error, "text", None), getattr(error, "offset", None)
    if not text or not offset or offset > len(text):
        return ""
    return f" at {text[offset - 1 :].strip()!r}"


def tree_of(tree: ast.expr, columns: Mapping[str, str], text: str) -> Node:
    if isinstance(tree, ast.Constant):
        number = tree.value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return Node("number", number=float(number))
    if isinstance(tree, ast.Name):
        if tree.id in _FUNCTIONS or tree.id in _CHOICES:
            raise InputError(
                f"--law {text!r}: {tree.id} is a function and stands here as a name; write {tree.id}(...), "
                "or call the parameter otherwise."
            )
        if tree.id in columns:
            return Node("column", name=columns[tree.id])
        return Node("parameter", name=tree.id)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.USub, ast.UAdd)):
        inner = tree_of(tree.operand, columns, text)
        if isinstance(tree.op, ast.UAdd):
            return inner
        if inner.op == "number":
            return Node("number", number=-inner.number)
        return Node("*", (Node("number", number=-1.0), inner))
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        sides = (tree_of(tree.left, columns, text), tree_of(tree.right, columns, text))
        return Node(_OPERATORS[type(tree.op)], sides)
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
        return _call(tree, columns, text)
    raise InputError(
        f"--law {text!r}: {ast.unparse(tree)!r} is not allowed in a formula; it takes numbers, names, + - * "
        f"/ **, brackets and {', '.join((*_FUNCTIONS, *_CHOICES))}."
    )


def _call(tree: ast.Call, columns, text) -> Node:
    assert isinstance(tree.func, ast.Name)
    name = tree.func.id
    known = (*_FUNCTIONS, *_CHOICES)
    if name not in known:
        raise InputError(
            f"--law {text!r}: function {name!r} is unknown{nearest(name, known)}. Known: {', '.join(known)}."
        )
    needed = 2 if name in _CHOICES else 1
    if len(tree.args) != needed:
        raise InputError(
            f"--law {text!r}: {name} takes {needed} argument{'s' * (needed > 1)}, not {len(tree.args)}."
        )
    return Node(name, tuple(tree_of(a, columns, text) for a in tree.args))


def computed(text: str, columns: Columns, option: str) -> np.ndarray:
    """An expression of columns alone, like `6*N*D`, at every row."""
    node = tree_of(parsed(text)[1], {c: c for c in columns}, text)
    if node.parameters:
        name = node.parameters[0]
        raise InputError(
            f"{option} {text!r}: {name!r} is no column{nearest(name, tuple(columns))}; there are "
            f"{', '.join(columns)}."
        )
    n = len(next(iter(columns.values())))
    with np.errstate(all="ignore"):
        return np.array(np.broadcast_to(node.at({}, columns)[0], n), dtype=float)
