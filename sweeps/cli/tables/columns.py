"""Tables that fit a terminal without cutting a number: what is the same in every row goes into the title."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.table.numbers import count
from sweeps.waiting import visible, wrapped

if TYPE_CHECKING:
    from rich.console import Console

    from parcae_core.trial import Trial

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
_GAP = 2  # blanks between two columns
_LONGEST_LIST = 20  # characters of values named one by one


Row = dict[str, Any]  # of a trial, as plain data


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


def grouped(trials: Iterable[Row]) -> list[list[Row]]:
    """Trials of one size and one length of training, in the order of the plan."""
    groups: dict[Any, list[Row]] = {}
    for t in trials:
        groups.setdefault((t["preset"], t["budget_flops"] or t["n_tokens"]), []).append(t)
    return list(groups.values())


def fields_of(trial: Trial, *more: str) -> Row:
    """What a row of any table has of a trial, and more of its fields."""
    names = ("trial_id", "preset", "mean_recurrence", "budget_flops", "n_tokens", "n_steps", "seed")
    parent = None if trial.parent is None else trial.parent.trial_id
    return {name: getattr(trial, name) for name in (*names, *more)} | {"parent": parent}


def console_for_people() -> Console:
    """stdout; a pipe has no width, and there no column is left out."""
    from rich.console import Console  # --json needs no rich

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            shown = (visible(o) if isinstance(o, str) else o for o in objects)
            super().print(*shown, **options)

    console = Plain(highlight=False, markup=False)
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
        table.add_row(*map(visible, row))
    wide = console.width
    console.width = max(wide, _width(shown))  # a narrower terminal wraps; nothing is cut
    console.print(table)
    console.width = wide
    if left_out:
        console.print(f"(at this width without {', '.join(reversed(left_out))}; --json has all)")


def _width(columns: Sequence[Column]) -> int:
    return sum(c.width + _GAP for c in columns)


def echo(text: str) -> None:
    """Print a report, its long lines broken between words on a terminal."""
    typer.echo(wrapped(text, sys.stdout))


def terminal_width() -> int | None:
    """Of stdout; a pipe has none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


# ---- numbers as people write them ----------------------------------------------------------------


def digits(number: float, n: int = 2) -> str:
    """So many digits, never with an exponent where people write none: 330, 0.086."""
    return f"{float(f'{number:.{n}g}'):,.6g}"


def span(values: Iterable[float], written: Callable[[float], str] = count) -> str:
    """The smallest and the largest of some numbers, or the one that they all are."""
    ordered = sorted(values)
    return "-".join(dict.fromkeys(map(written, (ordered[0], ordered[-1]))))


def flops(number: float) -> str:
    """Three digits, as people write them."""
    return _short(float(f"{number:.3g}"))


def budget_of(trial: Row) -> str:
    return "" if trial["budget_flops"] is None else _short(trial["budget_flops"])


def _short(number: float) -> str:
    from sweeps.design.plan import short  # every verb imports this file

    return short(number)


def listed(values: Iterable[float]) -> str:
    """Settings one by one while they are few; else their ends and how many there are."""
    ordered = sorted(set(values))
    text = " ".join(map(_short, ordered))
    if len(text) <= _LONGEST_LIST:
        return text
    return f"{_short(ordered[0])}-{_short(ordered[-1])} ({len(ordered)})"
