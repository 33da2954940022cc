"""What the residuals of a fit say of its rows: do those of one size move together, does a column that the
law does not know shift the loss?

Both are F tests of the fit against one with shifts added. They know the directions that the fit itself took
(the Jacobian), so that p-values are exact for independent normal errors; residuals far off are drawn in first.
Source: Draper & Smith, Applied Regression Analysis (3rd ed.), section 8.1. Rates on simulated tables: docs/laws.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import fdtrc

from analysis.fitting.dataset import Dataset
from analysis.fitting.objective import Objective
from analysis.laws.law import Law
from analysis.table import checks, numbers
from analysis.table.columns import info

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.005  # of false alarms, of each of the two
_DRAWN_IN = 3.0  # spreads
_ROWS = 3  # of a size, at least, on average: of fewer checkpoints the intervals hardly differ
_LEFT = 4  # degrees of freedom to judge by, at least
_KINDS = 5  # values of a column, at most, that make its rows kinds
_SMALL = 1e-3  # a shift of the loss below this share is no matter
_ROUNDING = 1e-13  # of log residuals, of data that are the law's own numbers
_PLANNED = ("budget_flops", "train_flops")
_SPENT = ("n_tokens", *_PLANNED)
_EMPTY = "(empty)"


def gain(residual: np.ndarray, taken: np.ndarray, added: np.ndarray) -> tuple[float, np.ndarray]:
    """The chance that noise alone gains as much from directions, beyond those a fit took; and its basis.

    Args:
        residual: (n,).
        taken: (n, p), orthonormal: what the fit took.
        added: (n, k).
    """
    free = added - taken @ (taken.T @ added)
    basis, size, _ = np.linalg.svd(free, full_matrices=False)
    basis = basis[:, size > 1e-6 * np.linalg.norm(added)]
    left = len(residual) - taken.shape[1] - basis.shape[1]
    if left < 1 or not basis.shape[1]:
        return 1.0, basis
    gained = float(np.sum((basis.T @ residual) ** 2))
    rest = max(float(residual @ residual) - gained, 1e-300)
    return float(fdtrc(basis.shape[1], left, gained / basis.shape[1] / (rest / left))), basis


def _residuals(objective: Objective, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals beyond the fit's directions, far ones drawn in; and an orthonormal basis of these directions."""
    r, jacobian = objective.residuals_and_jacobian(theta)
    taken = directions(jacobian[:, (theta > objective.lower) & (theta < objective.upper)])
    reach = _DRAWN_IN * 1.4826 * float(np.median(np.sort(np.abs(r))[taken.shape[1] :]))
    r = np.clip(r, -reach, reach)
    return r - taken @ (taken.T @ r), taken


def directions(jacobian: np.ndarray) -> np.ndarray:
    """An orthonormal basis (n, p) of what a fit took, whatever the units of its parameters."""
    return np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))[0]


def _sizes(data: Dataset, law: Law) -> np.ndarray | None:
    """The size of each row, (n,) int, where sizes have several rows at different tokens and no run is named."""
    others = [c for c in law.columns if c not in _SPENT]
    frame = data.table.frame
    if "n_tokens" not in law.columns or not others or "trial_id" in frame or data.clustered:
        return None
    sizes = frame.groupby(others, sort=False)
    of = sizes.ngroup().to_numpy()
    for spent in _PLANNED:  # where sizes share them, rows are runs of their own
        if spent not in frame or 2 * frame[spent].nunique() > len(frame):
            continue
        if sizes[spent].nunique().max() > 1:
            return None
    return of if len(of) >= _ROWS * (of.max() + 1) > _ROWS else None


def judged(
    objective: Objective, theta: np.ndarray, data: Dataset, law: Law
) -> tuple[Dataset, list[str], list[str]]:
    """The dataset, with sizes for runs where rows of one size move together; notes and problems.

    Nothing is judged of a law through the best runs alone, of curves of one run each, or of an exact fit.
    """
    if objective.undertuned != 1.0 or law.per_run or law.frontier or data.clustered:
        return data, [], []
    r, taken = _residuals(objective, theta)
    if len(r) - taken.shape[1] < _LEFT or np.abs(r).max() < _ROUNDING:
        return data, [], []
    of = _sizes(data, law)
    problems: list[str] = []
    notes: list[str] = []
    found = [] if law.target != "val_loss" else _columns(data, law)
    for called, names, kinds in found:
        added = _shifts(kinds)
        level = LEVEL / len(found)
        if len(r) - taken.shape[1] - added.shape[1] + 1 < _LEFT:
            continue
        p, basis = gain(r, taken, added)
        shift = basis @ (basis.T @ r)
        apart = np.linalg.lstsq(added - taken @ (taken.T @ added), r)[0]  # log(law / loss) of kinds
        if p > level or np.ptp(apart) < _SMALL:
            continue
        with_it = np.hstack([taken, basis])
        if of is not None and _within(of, kinds) and _move_together(r - shift, with_it, of):
            continue  # sizes differ by themselves: of so few kinds no shift can be told from that
        by_size = _within(_ranks(data, law), kinds)
        problems.append(_sentence(called, names, kinds, apart, by_size=by_size))
        r, taken = r - shift, with_it
    if of is not None and _move_together(r, taken, of):
        size = next(c for c in law.columns if c not in _SPENT)
        letter, n = info(size)[0], int(of.max()) + 1
        data = replace(data, runs=of, unit="sizes")
        notes.append(
            f"rows of one {letter} move together, as checkpoints of one run do: intervals count {n} sizes and not "
            f"{len(r)} rows (bootstraps resample sizes). If rows are runs of their own, their law has another form in "
            f"{letter}; if several runs share a size, map run=COLUMN"
        )
    return data, notes, problems


def _move_together(r: np.ndarray, taken: np.ndarray, of: np.ndarray) -> bool:
    """`gain` of a shift for each size, without a matrix that has a column for each (Frisch and Waugh)."""
    count = np.bincount(of)
    within = np.column_stack([r, taken])
    means = np.stack([np.bincount(of, column) / count for column in within.T], axis=1)
    within -= means[of]
    coefficients, _, rank, _ = np.linalg.lstsq(within[:, 1:], within[:, 0], rcond=1e-6)
    rest = float(np.sum((within[:, 0] - within[:, 1:] @ coefficients) ** 2))
    shifts, left = len(count) + rank - taken.shape[1], len(r) - len(count) - rank
    if left < _LEFT or shifts < 1:
        return False
    gained = max(float(r @ r) - rest, 0.0)
    return float(fdtrc(shifts, left, gained / shifts / (max(rest, 1e-300) / left))) < LEVEL


def _shifts(kinds: np.ndarray) -> np.ndarray:
    return (kinds[:, None] == np.arange(kinds.max() + 1)).astype(float)


def _within(of: np.ndarray, kinds: np.ndarray) -> bool:
    """Whether each of one has a single kind of the other."""
    pairs = np.unique(np.stack([of, kinds]), axis=1).shape[1]
    return pairs == len(np.unique(of))


def _ranks(data: Dataset, law: Law) -> np.ndarray:
    size = next((c for c in law.columns if c not in _SPENT), law.columns[0])
    return np.unique(data.columns[size], return_inverse=True)[1]


def _columns(data: Dataset, law: Law) -> list[tuple[str, list[str], np.ndarray]]:
    """Columns of a stranger's table with few values that the law does not know.

    Returns:
        The file's word for each, the names of its kinds, and the kind of each row (n,).
    """
    table = data.table
    if table.kind != "points":
        return []
    few: dict[str, pd.Series] = {}
    others = table.others
    if others is not None and len(others) == len(data):
        few |= {str(c): others[c] for c in others}
    if not checks.tuning(table, law.columns):  # which says it of runs of one setting
        few |= {table.called(c): table.frame[c] for c in checks.TUNED if c in table.frame}
    out = []
    for called, values in few.items():
        if called in law.columns:
            continue
        texts = values.astype("str").fillna(_EMPTY)
        counts = texts.value_counts()
        if not 2 <= len(counts) <= _KINDS or counts.iloc[1] < 2:
            continue
        kinds, names = texts.factorize()
        if not any(_same_or_rising(values, kinds, x) for x in data.columns.values()):
            out.append((called, [str(n) for n in names], kinds))
    return out


def _same_or_rising(values: pd.Series, kinds: np.ndarray, x: np.ndarray) -> bool:
    """Whether a column is one of the law's by another name: as many kinds, or numbers that follow it."""
    rank = np.unique(x, return_inverse=True)[1]
    if _within(rank, kinds) and _within(kinds, rank):
        return True
    read = numbers.floats(values)  # cells of a file are texts
    if len(np.unique(kinds)) == 2 or read.isna().any() or not _within(rank, kinds):
        return False
    along = np.diff(read.to_numpy()[np.argsort(x, kind="stable")])
    return bool((along >= 0).all() or (along <= 0).all())


def _sentence(called: str, names: list[str], kinds, apart, *, by_size: bool) -> str:
    low, high = names[int(apart.argmax())], names[int(apart.argmin())]
    most = max((k for k, n in enumerate(names) if n != _EMPTY), key=lambda k: (kinds == k).sum())
    own = "; each kind has sizes of its own, so part of the shift may be in the exponents"
    return (
        f"the loss depends on column {called!r}, which the law does not know ({high} lies {np.ptp(apart):.1%} above "
        f"{low}, beyond chance){own if by_size else ''}; keep one kind with --where "
        f"{checks.quoted(f'{called}={names[most]}')}"
    )
