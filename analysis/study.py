"""Everything that follows from one source: each law that its columns allow, and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import isoflop, sources, testtime
from analysis.errors import InputError
from analysis.results import FitResult

if TYPE_CHECKING:
    from analysis.figures import Drawing
    from analysis.sources import Table


@dataclass(frozen=True, slots=True)
class Study:
    """One source, analysed. `refusals` says in words which law could not be tried, and why."""

    table: Table
    recurrence: isoflop.Recurrence | None
    test_time: testtime.TestTime | None
    refusals: dict[str, str]  # law -> sentence

    @property
    def results(self) -> tuple[FitResult, ...]:
        return tuple(f.result for f in (self.recurrence, self.test_time) if f is not None)

    def summaries(self) -> list[str]:
        """One line per law: exponents with intervals, or why there are none."""
        lines = [r.summary() for r in self.results]
        return [
            *lines,
            *(f"{law} [{self.table.source}]: {why}" for law, why in self.refusals.items()),
        ]

    def drawings(self) -> list[Drawing]:
        """The figures that the fits allow."""
        from analysis import plots

        out = []
        if self.recurrence is not None:
            out += [plots.isoflop(self.recurrence), plots.power_laws(self.recurrence)]
        if self.test_time is not None:
            out.append(plots.test_time(self.test_time))
        return out


def study(table: Table, confidence: float = 0.95) -> Study:
    """Fit what the table's columns allow.

    Raises:
        InputError: when no law at all can be fitted, with the reason of each.
    """
    refusals: dict[str, str] = {}
    found = {}
    for name, fitter in (
        ("recurrence", isoflop.fit_recurrence),
        ("test-time", testtime.fit_test_time),
    ):
        try:
            found[name] = fitter(table, confidence=confidence)
        except InputError as error:
            refusals[name] = str(error)
    if not found:
        raise InputError("; ".join(f"{law}: {why}" for law, why in refusals.items()))
    return Study(table, found.get("recurrence"), found.get("test-time"), refusals)


def load(source: str | Path, **options) -> Study:
    """`study` of a source; options as for `sources.load`."""
    return study(sources.load(source, **options))
