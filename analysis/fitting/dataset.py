"""The one way from a table to a fit: rows selected once, columns and target as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from analysis.errors import InputError
from analysis.laws.law import Law
from analysis.table import checks, load, numbers, units
from analysis.table.columns import info
from analysis.table.load import Table

if TYPE_CHECKING:
    import pandas as pd

_ONE_LOSS = 1e-5  # two losses of one setting closer than this share are one measurement
_TOGETHER = 1e-4  # share of log N's variance that log D leaves unexplained: below, they are one


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Dataset:
    """The rows a law is fitted to. `table` holds them too, with source, dropped rows and notes."""

    table: Table
    columns: dict[str, np.ndarray]  # the law's, (n,) each
    target: np.ndarray  # (n,)
    runs: np.ndarray | None = None  # (n,) int: the run of each row, where runs have several rows
    unit: str = "runs"  # what `runs` numbers, in words: of some laws the cells of a design
    problems: tuple[str, ...] = ()  # sentences against fitting this law to these rows

    def __len__(self) -> int:
        return len(self.target)

    @property
    def n_runs(self) -> int:
        """Independent observations: runs where rows repeat them, else rows."""
        return len(self) if self.runs is None else len(np.unique(self.runs))

    @property
    def clustered(self) -> bool:
        """Whether several runs have several rows each, so that residuals of a run go together."""
        return self.runs is not None and self.n_runs > 1

    @property
    def units(self) -> str:
        """The same in words: "rows", "24 runs"."""
        return "rows" if self.runs is None else f"{self.n_runs} {self.unit}"

    @classmethod
    def of(
        cls,
        columns: Mapping[str, np.ndarray],
        target: np.ndarray,
        runs=None,
        target_name="val_loss",
    ) -> Dataset:
        """From arrays alone, for simulations and tests."""
        import pandas as pd

        frame = pd.DataFrame({**columns, target_name: target})
        table = load.Table(frame=frame, source="arrays", kind="points", origin="arrays")
        return cls(table=table, columns=dict(columns), target=np.asarray(target, float), runs=runs)

    def take(self, which: np.ndarray) -> Dataset:
        """The rows of a mask or an index."""
        rows, others = np.arange(len(self))[which], self.table.others
        others = others.iloc[rows] if others is not None and len(others) == len(self) else None
        return replace(
            self,
            table=replace(
                self.table,
                frame=self.table.frame.iloc[rows],
                others=others,
                rows=self.table.numbers[rows],
            ),
            columns={k: v[which] for k, v in self.columns.items()},
            target=self.target[which],
            runs=None if self.runs is None else np.unique(self.runs[which], return_inverse=True)[1],
        )


def prepare(table: Table, law: Law) -> Dataset:
    """The rows of a table that a law is fitted to.

    Raises:
        InputError: columns missing, values unusable, too few rows or no spread along a variable.
    """
    if not law.per_run and "n_loops" not in law.columns:
        table = load.at_training_depth(table)
    if law.frontier:
        table = load.on_the_frontier(table)
    table = _measured_once(load.need(table, (law.target, *law.columns), law.name), law)
    units.refuse_diverged(table.frame, table.source)
    columns = load.columns_of(table, law.columns)
    target = load.columns_of(table, (law.target,))[law.target]
    if not (target > 0).all():
        row = int(np.argmin(target > 0))
        raise InputError(
            f"{table.source}: {law.target} is {target[row]:g} in row {row + 1}; a law's target must be above "
            f'0, because its logarithm is fitted. Leave such rows out with --where "{law.target}>0".'
        )
    if np.ptp(target) == 0:
        raise InputError(
            f"{table.source}: {law.target} is {target[0]:g} in every row; a law describes how it changes. Add "
            "runs that differ, or map another column."
        )
    if len(target) <= len(law.params):
        raise InputError(
            f"{table.source}: {len(target)} rows for the {len(law.params)} parameters of "
            f"{law.name!r}; at least {len(law.params) + 1} are needed. Add runs."
        )
    for term in law.terms:
        if term.exponent is not None and np.ptp(_variable(law, term, columns)) == 0:
            raise InputError(
                f"{table.source}: the term of {term.coefficient} in {law.formula!r} has the same "
                "variable in every row; its effect cannot be told from a constant. Add runs that differ in it."
            )
    runs, unit = _runs(table.frame, law)
    if runs is not None and not law.per_run:
        one = unit.partition(" ")[0].removesuffix("s")
        table = table.noting(
            f"{len(target)} rows of {runs.max() + 1} {unit}: rows of one {one} are not independent, so "
            f"intervals count {one}s and not rows (bootstraps resample {one}s)"
        )
    return Dataset(
        table=table.noting(*_seed_notes(table, law), *_unnamed_notes(table, law)),
        columns=columns,
        target=target,
        runs=runs,
        unit=unit,
        problems=(
            *_proportional(law, columns),
            *_disagreements(table, law),
            *(() if law.per_run else checks.mixtures(table, law.columns, frontier=law.frontier)),
        ),
    )


def _measured_once(table: Table, law: Law) -> Table:
    """The table without rows that repeat another but for the last digits of the loss, as exports do."""
    if law.target != "val_loss":
        return table
    frame = table.frame
    key = [c for c in dict.fromkeys((*law.columns, "trial_id", "seed", "data_seed")) if c in frame]
    order = frame.sort_values([*key, law.target], kind="stable")
    same = (order[key] == order[key].shift()).all(axis=1)
    near = order[law.target].diff().abs() <= _ONE_LOSS * order[law.target].abs()
    again = (same & near).reindex(frame.index)
    return table.keep(~again, f"another row's but for less than {_ONE_LOSS:g} of the {law.target}")


def _disagreements(table: Table, law: Law) -> list[str]:
    """Without a seed, two rows of one setting may be replicas; one run counted twice is none."""
    if law.target != "val_loss":
        return []
    if "seed" in table.frame:
        return checks.disagreements(table, law.columns)
    return checks.repeated(table, law.columns)


def _variable(law: Law, term, columns) -> np.ndarray:
    """A term's variable, at the middle of its shape parameter's start region."""
    middle = {p.name: float(np.mean(p.start)) for p in law.params}.get(term.shape)
    return term.x(columns, middle)


def _runs(frame, law: Law) -> tuple[np.ndarray | None, str]:
    """The run of each row, (n,) int, where a run has several rows of this law, else None; and its word."""
    ways = [(["trial_id"], "runs")]
    if "n_loops" in law.columns and "trial_id" not in frame:  # a curve over loops is of one run
        curve = ("budget_flops", "mean_recurrence", "n_tokens", "seed")
        ways = [([c for c in curve if c in frame], "runs")]
    ways.append((list(law.cells), f"cells of {' and '.join(law.cells)}"))
    for keys, unit in ways:
        if not keys or not set(keys) <= set(frame) or (keys == ["trial_id"] and _several(frame)):
            continue
        # one name may have been given to two runs
        apart = [*keys, *(_models(frame) if keys == ["trial_id"] else ())]
        runs = frame.groupby(apart, dropna=False, sort=False).ngroup().to_numpy()
        # rows of one run tell of that run alone, which is what a curve over its loops asks
        of_a_run = law.per_run or law.columns == ("n_loops",)
        enough = len(law.params) if keys == list(law.cells) else int(of_a_run)
        if enough < runs.max() + 1 < len(runs):
            return runs, unit if runs.max() else "run"
    return None, "runs"


def _proportional(law: Law, columns) -> list[str]:
    """A sentence for each two power-law variables that rise together."""
    out = []
    positive = [c for c in law.columns if (columns[c] > 0).all()]
    simple = [c for c in positive if any(_is_power(t, c, columns) for t in law.terms)]
    for a, b in combinations(simple, 2):
        x, y = np.log(columns[a]), np.log(columns[b])
        correlation = np.corrcoef(x, y)[0, 1]
        if 1 - correlation**2 < _TOGETHER:
            slope = np.polyfit(x, y, 1)[0]
            how = f"rise together ({b} ~ {a}^{slope:.3g})"
            how = "are proportional" if abs(slope - 1) < 0.01 else how
            names = f"{info(a)[0]} and {info(b)[0]}"
            out.append(f"{names} {how}: their exponents cannot be told apart")
    return out


def _is_power(term, column: str, columns) -> bool:
    if term.exponent is None or term.shaped is not None:
        return False
    return np.array_equal(term.variable(columns), np.log(columns[column]))


def replica_noise(frame: pd.DataFrame, law: Law) -> tuple[float, int]:
    """Standard deviation of log targets of runs that differ in their seed alone, and its degrees of freedom."""
    if "seed" not in frame or frame.seed.nunique() < 2:
        return 0.0, 0
    setting = [*law.columns, *(c for c in ("injection", "muon_lr", "adamw_lr") if c in frame)]
    logs = frame[law.target].astype(float).transform(np.log)
    groups = logs.groupby([frame[c] for c in dict.fromkeys(setting)], dropna=False)
    dof = int((groups.size() - 1).sum())
    return float(np.sqrt(((logs - groups.transform("mean")) ** 2).sum() / max(dof, 1))), dof


def _seed_notes(table: Table, law: Law) -> list[str]:
    """What replicas say of the noise."""
    noise, dof = replica_noise(table.frame, law)
    if not dof:
        return []
    return [
        f"seeds are replicas: runs of one setting that differ in their seed have log losses {noise:.2g} "
        f"apart (standard deviation, {dof} degrees of freedom)"
    ]


def _several(frame: pd.DataFrame) -> bool:
    """Whether each trial_id of several rows is of several models, so that it is a name and not a run's."""
    ids = frame.groupby("trial_id", dropna=False)
    repeated = ids.size() > 1
    models = ids[_models(frame)].nunique()[repeated] > 1
    return bool(repeated.any() and models.any(axis=1).all())


def _models(frame: pd.DataFrame) -> list[str]:
    """Columns in which the rows of one run are the same."""
    return [c for c in ("n_params", "mean_recurrence") if c in frame]


def _unnamed_notes(table: Table, law: Law) -> list[str]:
    """Several losses at one setting, and nothing that says whether they are seeds, or one run counted twice."""
    frame = table.frame
    if not law.per_run and "trial_id" in frame and _several(frame):
        return [
            "rows of one run name are of several models, so it names no run: every row counts as a run of its own"
        ]
    if law.per_run or law.target != "val_loss" or {"trial_id", "seed"} & set(frame):
        return []
    setting = [frame[c] for c in law.columns]
    spread = numbers.floats(frame.val_loss).groupby(setting).agg(["min", "max", "size"])
    several = spread[spread["size"] > 1]
    if several.empty:
        return []
    apart = float((several["max"] / several["min"] - 1).max())
    return [
        f"{len(several)} settings hold several losses, up to {apart:.2%} apart, and no column tells runs or seeds: "
        "every row counts as a run of its own; map seed=COLUMN or run=COLUMN, or keep one of each"
    ]
