"""What the records of a generated corpus allow: losses beside the floor that is known.

Loops against fixed depth at equal FLOPs, and the loss of a revealed state by the gap of actions before
it, above what nobody can know. Columns of `analysis.table.records.KNOWN_COLUMNS`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.table import numbers
from analysis.table.table import Table

if TYPE_CHECKING:
    import pandas as pd

# Gaps are pooled where a single one is seen too seldom: upper ends of the bins
GAP_ENDS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualFlops:
    """One budget: the fixed-depth Transformer and the best looped model, mean over seeds."""

    budget_flops: float
    fixed_loss: float  # nats per token, mean over seeds
    looped_loss: float  # at T = mean_recurrence
    mean_recurrence: float  # of that model
    floor: float | None  # None for text

    @property
    def gain(self) -> float:
        """Nats per token that loops save; negative where they cost."""
        return self.fixed_loss - self.looped_loss

    @property
    def share(self) -> float | None:
        """Of what separates the fixed-depth model from the floor."""
        return None if self.floor is None else self.gain / (self.fixed_loss - self.floor)


def has_floor(table: Table) -> bool:
    """Whether the rows are of a corpus whose lowest loss is known."""
    return "loss_floor" in table.frame and bool(table.frame.loss_floor.notna().all())


def equal_flops(table: Table, fixed_depth: pd.Series | None = None) -> list[EqualFlops]:
    """Loops against fixed depth, for each budget that both were trained for; empty if there is none.

    Args:
        table: rows of a records table, or, with `fixed_depth`, any with budgets, mu and losses at T = mu.
        fixed_depth: which rows are the Transformer's, where the caller knows.

    Raises:
        InputError: if the table does not tell the two apart.
    """
    frame = table.frame
    if fixed_depth is None:
        if not {"architecture", "budget_flops", "n_loops", "mean_recurrence"} <= set(frame.columns):
            raise InputError(
                f"{table.source}: a comparison with fixed depth needs a records table."
            )
        frame = frame[frame.n_loops == frame.mean_recurrence]
        fixed_depth = frame.architecture == "transformer"
    floor = float(frame.loss_floor.iloc[0]) if has_floor(table) else None
    out = []
    for _, rows in frame.groupby("budget_flops"):
        is_fixed = fixed_depth[rows.index]
        fixed = numbers.floats(rows.val_loss)[is_fixed]
        looped = numbers.floats(rows.val_loss)[~is_fixed].groupby(rows.mean_recurrence).mean()
        if len(fixed) and len(looped):
            out.append(
                EqualFlops(
                    budget_flops=float(rows.budget_flops.iloc[0]),
                    fixed_loss=float(fixed.mean()),
                    looped_loss=float(looped.min()),
                    mean_recurrence=float(looped.index[int(looped.argmin())]),
                    floor=floor,
                )
            )
    return out


def by_gap(table: Table, budget_flops: float, mean_recurrence: float) -> pd.DataFrame:
    """Loss of a revealed state above its floor, by gap and loops at evaluation.

    Returns:
        Columns n_loops, gap (upper end of a bin), n_tokens, excess (nats per token, mean over the
        seeds' tokens).

    Raises:
        InputError: if the records hold no losses by gap of such a model.
    """
    import pandas as pd

    frame = table.frame
    if not has_floor(table) or "val_loss_by_label" not in frame:
        raise InputError(f"{table.source}: no losses by gap; they are of a generated corpus.")
    chosen = frame[
        (frame.budget_flops == budget_flops) & (frame.mean_recurrence == mean_recurrence)
    ]
    rows = []
    columns = (chosen.n_loops, chosen.floor_by_label, chosen.val_loss_by_label)
    for n_loops, floor_by_label, loss_by_label in zip(*columns, strict=True):
        floors = json.loads(floor_by_label)
        for gap, (n, loss) in json.loads(loss_by_label).items():
            end = next(e for e in GAP_ENDS if int(gap) <= e)
            rows.append((n_loops, end, n, n * (loss - floors[gap])))
    if not rows:
        raise InputError(
            f"{table.source}: no run at {budget_flops:g} FLOPs and mean_recurrence={mean_recurrence:g}."
        )
    found = pd.DataFrame(rows, columns=["n_loops", "gap", "n_tokens", "excess"])
    sums = found.groupby(["n_loops", "gap"], as_index=False).sum()
    return sums.assign(excess=sums.excess / sums.n_tokens)
