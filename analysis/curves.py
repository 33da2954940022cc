"""Learning curves of runs, and their lower envelope: the least loss that any run reached with a compute.

The envelope is Chinchilla's first approach (arXiv:2203.15556, section 3.1): at each compute the run with the lowest
smoothed training loss. `frontier` fitted to it is a law of training loss in compute, from curves that were not
cooled down at that compute: an upper bound of what runs planned for it reach.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.errors import InputError
from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.result import Dropped
from analysis.laws import library
from analysis.laws.law import Law
from analysis.table import load, numbers
from analysis.table.columns import written
from analysis.table.table import Table

if TYPE_CHECKING:
    import pandas as pd

NO_ENVELOPE = "tokens alone give curves and no envelope, which needs compute: map parameters too, N=COLUMN, or FLOPs, C=COLUMN"
SMOOTH = 0.02  # of a run's points, the width of the running mean
MIN_POINTS = 5  # of a run: fewer are no curve
SHARE = 0.1  # of a run that is left out at its start, where the learning rate warms up
_HELD_OUT = re.compile(
    r"(^|[^a-z])(val|valid|validation|eval|test|dev|held_?out)([^a-z]|$)", re.IGNORECASE
)
# column: what an axis calls it; those that a source has are drawn
SHOWN = {
    "loss": "training loss (nats per token)",
    "lr": "learning rate",
    "spectral_radius": "spectral radius",
    "state_norm": "state norm",
}


@dataclass(frozen=True, slots=True)
class Curves:
    """Rows of runs over training: run, n_tokens, train_flops, loss, and of `SHOWN` what was logged.

    `validation` is the validation loss where it was measured. Without train_flops there is no envelope.
    """

    frame: pd.DataFrame
    source: str
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    what: str = "training loss"  # what `loss` is: a table may hold another

    @property
    def labels(self) -> dict[str, str]:
        """What an axis calls each column."""
        return SHOWN | {"loss": f"{self.what} (nats per token)"}

    @property
    def axis(self) -> str:
        """What the runs are ordered by: train_flops, or n_tokens where no compute is known."""
        return _axis(self.frame)

    @property
    def runs(self) -> list[tuple[str, pd.DataFrame]]:
        """Each run's rows by compute, runs with the most compute last."""
        by = self.axis
        groups = [(str(run), rows.sort_values(by)) for run, rows in self.frame.groupby("run")]
        return sorted(groups, key=lambda g: float(g[1][by].iloc[-1]))


def of_table(table: Table) -> Curves:
    """The curves in a table with several rows per run; C = 6 N D where it gives no FLOPs, tokens alone without N.

    Raises:
        InputError: without runs, tokens or FLOPs, or when no run has enough rows.
    """
    frame = table.frame
    if "trial_id" not in frame or "val_loss" not in frame:
        raise InputError(
            f"{table.source}: curves need a row per run and step; map the run and the loss with "
            "--columns run=COLUMN,loss=COLUMN,D=COLUMN."
        )
    spent = ("n_params", "n_tokens", "train_flops")
    axes = {n: numbers.floats(frame[n]) for n in spent if n in frame}
    if "train_flops" not in axes and {"n_params", "n_tokens"} <= set(axes):
        axes["train_flops"] = 6 * axes["n_params"] * axes["n_tokens"]
        table = table.noting("no FLOPs given: C taken as 6 N D")
    if not {"train_flops", "n_tokens"} & set(axes):
        example = written(table.columns, n_tokens="COLUMN")
        raise InputError(
            f"{table.source}: curves need FLOPs, C=COLUMN, or tokens, like {example}; of steps, "
            "D=COLUMN*NUMBER with the tokens of a step."
        )
    rows = frame.assign(run=frame.trial_id, loss=numbers.floats(frame.val_loss), **axes)
    table = load.without_highest(replace(table, frame=rows))
    column = table.called("val_loss")
    what = "validation loss" if _HELD_OUT.search(column) else "training loss"
    others = [c for c in table.unmapped if re.search("train.*loss", c, re.IGNORECASE)]
    if what == "validation loss" and others:
        table = table.noting(
            f"the curves are of {column!r}, a validation loss; those of the training loss: "
            f"{written(table.columns, val_loss=others[0])}"
        )
    table = _usable(table)
    long = table.frame.groupby("run").loss.transform("size") >= MIN_POINTS
    if not long.any():
        raise InputError(f"{table.source}: no run has {MIN_POINTS} rows, so there are no curves.")
    table = table.keep(long, f"of a run with fewer than {MIN_POINTS} rows, which is no curve")
    return Curves(table.frame, table.source, table.dropped, table.notes, what)


def of_log(frame: pd.DataFrame, source: str) -> Curves:
    """The curves in rows that have the columns of `Curves` already; `source` names them in messages."""
    table = _usable(Table(frame=frame, source=source, kind="points", origin="logged in training"))
    return Curves(table.frame, source, table.dropped)


def _usable(table: Table) -> Table:
    """The rows that a curve can go through: one infinite loss would spoil a running mean."""
    by = _axis(table.frame)
    table = table.keep(
        np.isfinite(table.frame.loss), "no finite loss; the curve goes straight across"
    )
    spent = table.frame[by]
    what = "compute" if by == "train_flops" else "tokens"
    return table.keep(np.isfinite(spent) & (spent > 0), f"no {what} above 0")


def _axis(frame: pd.DataFrame) -> str:
    return "train_flops" if "train_flops" in frame else "n_tokens"


def smoothed(rows: pd.DataFrame) -> pd.DataFrame:
    """A run's rows without its start, its loss a running mean."""
    return averaged(rows.iloc[int(SHARE * len(rows)) :])


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """The loss as a running mean over `SMOOTH` of the rows."""
    width = max(1, round(SMOOTH * len(rows)))
    return rows.assign(loss=rows.loss.rolling(width, center=True, min_periods=1).mean())


def envelope(curves: Curves, n: int = 60) -> Table:
    """The lowest smoothed loss at each of n computes, and the run that had it.

    Raises:
        InputError: when the curves have no compute, or none in common.
    """
    import pandas as pd

    if "train_flops" not in curves.frame:
        raise InputError(
            f"{curves.source}: {NO_ENVELOPE}; or draw them alone, --out FOLDER without --json."
        )

    # a row of step 0 has spent nothing, and log C of nothing is no place on a curve
    started = [(name, rows[rows.train_flops > 0]) for name, rows in curves.runs]
    runs = [(name, smoothed(rows)) for name, rows in started if len(rows)]
    low = min((float(r.train_flops.min()) for _, r in runs), default=0.0)
    high = max((float(r.train_flops.max()) for _, r in runs), default=0.0)
    if not low < high:
        raise InputError(
            f"{curves.source}: every row has the same compute, so there is no envelope."
        )
    grid = np.geomspace(low, high, n)
    beyond = {"left": np.inf, "right": np.inf}
    losses = np.array(
        [np.interp(np.log(grid), np.log(r.train_flops), r.loss, **beyond) for _, r in runs]
    )
    least = losses.min(axis=0)
    falling = np.isfinite(least) & (least < np.minimum.accumulate(np.r_[np.inf, least[:-1]]))
    frame = pd.DataFrame({"train_flops": grid[falling], "val_loss": least[falling]})
    frame["trial_id"] = [runs[i][0] for i in losses.argmin(axis=0)[falling]]
    return Table(
        frame=frame,
        source=curves.source,
        kind="points",
        origin="lower envelope of the training curves",
        dropped=curves.dropped,
        notes=(
            *curves.notes,
            f"the lower envelope of {len(runs)} runs' smoothed {curves.what}es at {n} computes: of runs not "
            "cooled down there, so an upper bound of what a run planned for that compute reaches",
        ),
    )


def fit_envelope(curves: Curves, law: Law | None = None, **options) -> Fit:
    """L_inf + A C^-a through the envelope.

    Raises:
        InputError: too few points on the envelope.
    """
    return fit_table(envelope(curves), law or library.get("frontier"), **options)
