"""Numbers as people write them: 11.2B, 31,000,000, 4,58 where a comma is decimal, '1e18, 3e18 FLOPs.

A cell that is no number stays as it is, so that a message can show it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {
    3: "k thousand thousands",
    6: "m mm mn million millions mio",
    9: "b bn g billion billions mrd",
    12: "t trillion trillions",
}
SCALES = {word: f"1e{n}" for n, words in _WORDS.items() for word in words.split()}
FLOP_SCALES = SCALES | {"p": "1e15", "e": "1e18", "z": "1e21", "y": "1e24"}
_CELL = re.compile(
    r"(?P<number>[+-]?[\d.,]*\d[.,]?(?:e[+-]?\d+)?)"
    r"(?:[x\u00d7*\u00b7]10(?:\^|\*\*)?(?P<power>[+-]?\d+))?"
    rf"(?P<scale>{'|'.join(FLOP_SCALES)})?"
    r"(?P<unit>flops?|tokens?|toks?|params?|parameters?|nats?|loops?|steps?)?",
    re.IGNORECASE,
)
_POWER_OF_TEN = re.compile(r"(?:1(?:\.0*)?[x\u00d7*\u00b7])?10(?:\^|\*\*)([+-]?\d+)", re.IGNORECASE)
# ,123 or 1.234,567 or 2,018e+08, whose digits nobody groups
_DECIMAL = re.compile(r"^[+-]?0?,|\.\d{3},|,\d+(?:e[+-]?\d|[x\u00d7*\u00b7]10)", re.IGNORECASE)
_WRAPPING = "'\"`*~\u2248"  # a spreadsheet's mark of text, quotes, Markdown's emphasis, and "about"
# 3.10 \u00b1 0.02, 3.10(2)
_ERROR = re.compile(r"(?<=\d)\s*(?:(?:\u00b1|\+/?-)\s*[\d.,]+|\([\d.,]+\))$")
_GROUPING = re.compile(r"(?<=\d)[ _\u2019'\u00a0\u2009\u202f](?=\d{3}(\D|$))")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # beside a letter or a sign; "4 58" is no number


def parse(values: pd.Series, comma: str | None = None) -> pd.Series:
    """The column as floats; as objects, floats beside the cells as they were, when some are no number.

    Args:
        comma: what "3,245" means where no other cell tells: "decimal", "thousands", or None: no number.
    """
    import pandas as pd

    numbers = floats(values)
    odd = values.notna() & numbers.isna()
    if not odd.any():
        return numbers
    cells = values[values.notna()].astype(str).map(_bare)
    dots = bool(cells.str.fullmatch(r"[+-]?\d{1,3}(\.\d{3}){2,}(,\d*)?").any())
    odd = values.notna() if dots else odd
    style = _comma_of(cells[odd.reindex(cells.index)], comma)
    read = [_number(cell, style, dots) for cell in cells[odd.reindex(cells.index)]]
    plain = [number is not None for number in read]
    if all(plain):
        return numbers.where(~odd, pd.Series(read, index=values.index[odd], dtype=float))
    out = numbers.astype(object)
    kept = [c if n is None else n for c, n in zip(values[odd], read, strict=True)]
    out[odd] = pd.Series(kept, index=values.index[odd], dtype=object)
    return out


def floats(values: pd.Series) -> pd.Series:
    """The cells that are numbers to pandas, as floats; the others as NaN, too long a number as infinity."""
    import pandas as pd

    if values.dtype.kind in "mM":  # a time is no number, and its nanoseconds nobody means
        return pd.Series(float("nan"), index=values.index)
    numbers = pd.to_numeric(values, errors="coerce")
    try:
        return numbers.astype("float64")
    except OverflowError:  # whole numbers of hundreds of digits
        return numbers.map(lambda n: float(str(n))).astype("float64")


def one(text: str) -> float | None:
    """One number as a person types it, or None."""
    try:
        return float(text)
    except ValueError:
        return _number(_bare(text), _comma_of([_bare(text)], None), False)


def count(number: float) -> str:
    """Tokens, parameters, FLOPs a second as people write them: three digits and a letter, 11.2B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _bare(cell: str) -> str:
    value = re.sub(r"^[A-Za-z_]+ ?= ?", "", cell.strip())
    text = value.strip(_WRAPPING).strip().replace("\u2212", "-")
    return _SPACE.sub("", _GROUPING.sub("", _ERROR.sub("", text)))


def _comma_of(cells, otherwise: str | None) -> str | None:
    """What a comma means in a column: some cell usually tells; two that disagree mean nothing."""
    decimal = thousands = False
    for cell in cells:
        if "," not in cell:
            continue
        tail = re.split(r"\D", cell.rpartition(",")[2], maxsplit=1)[0]
        if cell.count(",") > 1 or re.search(r",\d{3}\.", cell):
            thousands = True
        elif len(tail) != 3 or _DECIMAL.search(cell):
            decimal = True
    if decimal and thousands:
        return None
    return "decimal" if decimal else "thousands" if thousands else otherwise


def _number(cell: str, comma: str | None, dots_group: bool) -> float | None:
    if power := _POWER_OF_TEN.fullmatch(cell):
        return 10.0 ** int(power[1])
    found = _CELL.fullmatch(cell)
    if not found:
        return None
    text = found["number"].lower()
    if dots_group:
        text = text.replace(".", "")
    if "," in text:
        if comma == "decimal":
            text = text.replace(".", "").replace(",", ".")
        elif comma == "thousands" and re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?(e.*)?", text):
            text = text.replace(",", "")
        else:
            return None
    of_flops = (found["unit"] or "").lower().startswith("flop")
    scales = (FLOP_SCALES if of_flops else SCALES) | {"": "1"}
    scale = scales.get((found["scale"] or "").lower())
    try:
        return (
            None if scale is None else float(text) * 10.0 ** int(found["power"] or 0) * float(scale)
        )
    except (ValueError, OverflowError):
        return None
