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
    columns = {str(c): frame[c] for c in frame}
    columns |= {letter: frame[name] for letter, name in LETTERS.items() if name in frame}
    if raw is not None:
        columns = {str(c): raw[c] for c in raw} | columns
    name, sign, value = _parsed(condition, columns)
    column = columns[name]
    mask = _compared(column, sign, value, condition, LETTERS.get(name, name))
    if not mask.any():
        seen = ", ".join(dict.fromkeys(map(str, column.dropna().head(1000))))
        shown = f" {name} is {seen[:200]}{', ...' if len(seen) > 200 else ''}."
        raise InputError(f"{where}: no row meets --where {condition!r}; loosen it.{shown}")
    return mask


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
    import numpy as np
    import pandas as pd

    read = column
    if column.dtype.kind not in "iufb":
        parsed = numbers.parse(column, "decimal" if name == "val_loss" else "thousands")
        read = pd.to_numeric(parsed, errors="coerce")
    read = read.astype("float64")
    wanted = numbers.one(value)
    is_text = not read.notna().any() or name == "trial_id"
    if is_text and sign in ("=", "==", "!="):
        return _SIGNS[sign](column.astype("str").fillna("").str.strip(), value)
    if wanted is None and sign in ("=", "==", "!=") and read.isna().any():
        return _SIGNS[sign](column.astype("str").fillna("").str.strip(), value)  # pending, crashed
    if wanted is None:
        raise InputError(f"--where {condition!r}: {name} is a number and {value!r} is not.")
    if not read.notna().any():
        raise InputError(
            f"--where {condition!r}: {name} holds no numbers; compare it with = or !=."
        )
    met = _SIGNS[sign](read, wanted)
    return met if sign == "!=" else met & np.isfinite(read)
