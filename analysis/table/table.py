"""The table that every law sees: rows under canonical names, and what was left out on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from analysis.fitting.result import Dropped
from analysis.table import records

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Table:
    """Rows of evaluations under canonical names, and where they came from."""

    frame: pd.DataFrame
    source: str  # one phrase for a reader: "sweep demo (runs/demo)"
    kind: str  # "sweep", "records", "points"
    origin: str  # who measured, for the report: "measured by this sweep"
    flops_rule: str | None = None
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    own: dict[str, str] = field(default_factory=dict)  # our name -> the file's own column
    unmapped: tuple[str, ...] = ()  # the file's other columns
    unsure: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our name -> several columns
    columns: dict[str, str] = field(default_factory=dict)  # the mapping, as `--columns` gives it
    others: pd.DataFrame | None = None  # the unmapped columns of the same rows, as they are
    rows: np.ndarray | None = None  # of the source, counted from 0, that were kept; None: all
    drop_highest: int = 0  # rows of the highest losses that a law is still to leave out

    @property
    def sha256(self) -> str:
        """Hash of the rows, not of the file that carried them."""
        return records.sha256(self.frame)

    @property
    def numbers(self) -> np.ndarray:
        """Of each row in its source, counted from 0."""
        import numpy as np

        return np.arange(len(self.frame)) if self.rows is None else self.rows

    def keep(self, mask, reason: str) -> Table:
        """The rows where `mask` holds; the others are listed as dropped for `reason`."""
        import numpy as np

        n_lost = int((~mask).sum())
        if not n_lost:
            return self
        return replace(
            self,
            frame=self.frame[mask].reset_index(drop=True),
            others=None if self.others is None else self.others[mask].reset_index(drop=True),
            rows=self.numbers[np.asarray(mask, bool)],
            dropped=(*self.dropped, Dropped(reason=reason, n_rows=n_lost)),
        )

    def noting(self, *notes: str) -> Table:
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))

    def called(self, name: str) -> str:
        """The word for a column that `--where` takes: the file's own, else ours."""
        return self.own.get(name, name)
