"""`--where`: conditions on our names, the papers' letters and a file's own columns.

n_tokens>1e9   D>1e9   State=finished   "eval/loss<5"   run!=

Numbers are compared as numbers; a cell that holds none meets no such condition.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

from analysis.errors import InputError, nearest
from analysis.table import numbers
from analysis.table.columns import LETTERS

if TYPE_CHECKING:
    import pandas as pd

_SIGNS = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_SIGN = re.compile("|".join(_SIGNS))


def keep(condition: str, frame: pd.DataFrame, raw: pd.DataFrame | None, where: str) -> pd.Series:
    """Which rows meet a condition.

    Args:
        frame: under our names, which come first.
        raw: the same rows under the file's own.

    Raises:
        InputError: a condition that cannot be read, or one that no row meets.
    """
    columns = named(frame, raw)
    name, sign, value = _parsed(condition, columns)
    column = columns[name]
    mask = _compared(column, sign, value, condition, LETTERS.get(name, name))
    if not mask.any():
        seen = ", ".join(dict.fromkeys(map(str, column.dropna().head(1000))))
        shown = f" {name} is {seen[:200]}{', ...' if len(seen) > 200 else ''}."
        raise InputError(f"{where}: no row meets --where {condition!r}; loosen it.{shown}")
    return mask


def reason(condition: str, frame: pd.DataFrame, raw: pd.DataFrame | None) -> str:
    """Why the rows go that do not meet a condition; cells without the number it asks for are counted."""
    columns = named(frame, raw)
    name, sign, _ = _parsed(condition, columns)
    column = columns[name]
    unread = column[_read(column, LETTERS.get(name, name)).isna() & column.notna()]
    if sign not in ("<", "<=", ">", ">=") or not len(unread):
        return f"not {condition}"
    return f"not {condition} ({len(unread)} hold no number there, like {str(unread.iloc[0])!r})"


def named(frame: pd.DataFrame, raw: pd.DataFrame | None) -> dict[str, pd.Series]:
    """By every name that a condition may use, ours first."""
    columns = {str(c): frame[c] for c in frame}
    columns |= {letter: frame[name] for letter, name in LETTERS.items() if name in frame}
    return columns if raw is None else {str(c): raw[c] for c in raw} | columns


def _read(column: pd.Series, name: str) -> pd.Series:
    """The column as floats, NaN where a cell is no number."""
    import pandas as pd

    if column.dtype.kind not in "iufb":
        parsed = numbers.parse(column, "decimal" if name == "val_loss" else "thousands")
        column = pd.to_numeric(parsed, errors="coerce")
    return column.astype("float64")


def _parsed(condition: str, columns: dict[str, pd.Series]) -> tuple[str, str, str]:
    """Cut at the sign that leaves the longest known column before it, which may hold a sign itself."""
    cuts = [
        (condition[: m.start()].strip(), m[0], condition[m.end() :])
        for m in _SIGN.finditer(condition)
    ]
    cuts = [(re.sub(r"^([\"'])(.*)\1$", r"\2", name), sign, value) for name, sign, value in cuts]
    known = [c for c in cuts if c[0] in columns]
    if not known:
        guess = cuts[0][0] if cuts else condition
        raise InputError(
            f"--where {condition!r}: COLUMN OP VALUE is needed, with OP one of = != < <= > >= and "
            f"COLUMN one of {', '.join(columns)}{nearest(guess, tuple(columns))}"
        )
    name, sign, value = known[-1]
    return name, sign, re.sub(r"^([\"'])(.*)\1$", r"\2", value.strip())


def _compared(column: pd.Series, sign: str, value: str, condition: str, name: str) -> pd.Series:
    read = _read(column, name)
    wanted = numbers.one(value)
    truths = column.dropna().astype("str").str.lower().isin(("true", "false")).all()
    if truths and sign in ("=", "==", "!=") and value.lower() in ("true", "false"):
        return _SIGNS[sign](column.astype("str").str.lower(), value.lower())
    is_text = not read.notna().any() or name == "trial_id"
    some_text = wanted is None and read.isna().any()  # pending, crashed
    if (is_text or some_text) and sign in ("=", "==", "!="):
        return _SIGNS[sign](column.astype("str").fillna("").str.strip(), value)
    if not read.notna().any():
        raise InputError(
            f"--where {condition!r}: {name} holds no numbers; compare it with = or !=."
        )
    if wanted is None:
        raise InputError(f"--where {condition!r}: {name} is a number and {value!r} is not.")
    met = _SIGNS[sign](read, wanted)
    return met if sign == "!=" else met & (read.abs() < float("inf"))
