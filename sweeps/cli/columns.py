"""Tables that fit a terminal without cutting a number: what is the same in every row goes into the title."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2  # blanks between two columns
_LONGEST_LIST = 20  # characters of values named one by one


@dataclass(frozen=True, slots=True)
class Column:
    """A column of text, one cell per row."""

    name: str
    cells: list[str]
    rank: int = 0  # where the terminal is too narrow the highest are left out first; 0: never
    left: bool = False  # aligned; numbers are not
    stays: bool = False  # a column, even if it is the same in every row

    @property
    def width(self) -> int:
        return max(map(len, (self.name, *self.cells)))


def console_for_people() -> Console:
    """stdout; a pipe has no width, and there no column is left out."""
    from rich.console import Console  # --json needs no rich

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    return console


def print_table(console: Console, title: str, columns: Sequence[Column]) -> None:
    """A title, and below it the columns whose cells differ."""
    from rich.table import Table

    same = [
        c
        for c in columns
        if len(set(c.cells)) == 1 and not c.stays and (len(c.cells) > 1 or c.rank > 0)
    ]
    shown = [c for c in columns if c not in same and any(c.cells)]
    said = ", ".join(f"{c.name} {c.cells[0]}" for c in same if c.cells[0])
    console.print(f"{title}{'; ' * bool(said)}{said}", style="bold")
    left_out = []
    while _width(shown) > console.width and (most := max(shown, key=lambda c: c.rank)).rank:
        shown.remove(most)
        left_out.append(most.name)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for column in shown:
        table.add_column(column.name, justify="left" if column.left else "right", no_wrap=True)
    for row in zip(*(c.cells for c in shown), strict=True):
        table.add_row(*row)
    wide = console.width
    console.width = max(
        wide, _width(shown)
    )  # a terminal narrower than the rest wraps; nothing is cut
    console.print(table)
    console.width = wide
    if left_out:
        console.print(f"(at this width without {', '.join(reversed(left_out))}; --json has all)")


def _width(columns: Sequence[Column]) -> int:
    return sum(c.width + _GAP for c in columns)


def echo(text: str) -> None:
    """Print a report; a terminal gets its long lines broken between words, never within a number."""
    if sys.stdout.isatty():
        text = "\n".join(
            _wrapped(line, shutil.get_terminal_size().columns) for line in text.splitlines()
        )
    typer.echo(text)


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


# ---- numbers as people write them ----------------------------------------------------------------


def count(number: float) -> str:
    """Tokens, FLOPs a second: three digits and a letter, such as 11.2B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def digits(number: float, n: int = 2) -> str:
    """So many digits, never with an exponent where people write none: 330, 0.086."""
    return f"{float(f'{number:.{n}g}'):,.6g}"


def span(values: Iterable[float], written: Callable[[float], str] = count) -> str:
    """The smallest and the largest of some numbers, or the one that they all are."""
    ordered = sorted(values)
    return "-".join(dict.fromkeys(map(written, (ordered[0], ordered[-1]))))


def listed(values: Iterable[float]) -> str:
    """Settings one by one while they are few; else their ends and how many there are."""
    from sweeps.design.plan import short  # every verb imports this file

    ordered = sorted(set(values))
    text = " ".join(map(short, ordered))
    if len(text) <= _LONGEST_LIST:
        return text
    return f"{short(ordered[0])}-{short(ordered[-1])} ({len(ordered)})"
