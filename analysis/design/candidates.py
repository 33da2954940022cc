"""A table of candidate runs, as a file gives it: law, costs, target rows, groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.choices import Changes
from analysis.design.pool import Choice, Options, Pool, choose, predict
from analysis.errors import InputError
from analysis.laws import expression, formula, library
from analysis.laws.law import Law
from analysis.table import filters, numbers, sources
from analysis.table.columns import LETTERS, canonical

_SPLIT, _TARGET = "split", "test"  # the column that says which rows are wanted, and its word for it
_COSTLY = 0.9  # without one, the candidates beyond this quantile of cost are what is predicted
_LOSS = ("loss", "val_loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Rows of the file, counted from 0, in the order they should be run."""

    choices: tuple[Choice, ...]
    rows: tuple[int, ...]
    spent: float
    of: float
    target: str  # in words
    predicted: dict[int, float]  # losses of target rows, from rows whose loss is known
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return {
            "chosen": list(self.rows),
            "spent": self.spent,
            "of": self.of,
            "counted_from": 0,
            "target": self.target,
            "predicted": {str(row): loss for row, loss in sorted(self.predicted.items())},
            "reasons": [c.reason for c in self.choices],
            "notes": list(self.notes),
        }


def design(
    path: str | Path,
    law: str,
    *,
    cost: str,
    share: float,
    target: str | None = None,
    by: str | None = None,
    columns: dict[str, str] | None = None,
    changes: Changes | None = None,
    options: Options | None = None,
) -> Chosen:
    """Choose rows of a file of candidate runs with their costs, up to a share of the whole cost.

    Where every row has a loss this replays a study: a loss is read once its row is chosen. Where some have
    none, those with one are taken as run already, and the choice is among the others. A row whose loss is
    infinite or not above 0 was run and left none: it is no candidate.

    Args:
        law: a law of the registry or a formula in the file's columns.
        cost: a column, or an expression of columns like 6*N*D.
        target: a condition on columns, like "N>1e9"; None: rows whose `split` is `test`, or where there is
            no such column the costliest tenth of the candidates.
        by: a column of groups that are fitted by themselves and share the budget; None: `group` where
            the file has one.
        columns: our name or letter -> the file's column.

    Raises:
        InputError: a file, column, condition or share that does not make sense.
    """
    if not 0 < share <= 1:
        raise InputError(f"--share is {share:g}; a share of the pool's cost in (0, 1] is needed.")
    frame = sources.read(path).frame
    where = str(path)
    cells = {str(c): numbers.floats(numbers.parse(frame[c])).to_numpy(float) for c in frame}
    numeric = {c: v for c, v in cells.items() if np.isfinite(v).any()}
    named = _named(numeric, columns or {}, where)
    price = _costs(cost, named, where)
    wanted, words = _target(frame, target, price, where)
    can_run = (
        ~wanted if target is not None or words.startswith(_SPLIT) else np.ones(len(frame), bool)
    )
    loss = named.get("loss", np.full(len(frame), np.nan))
    lost = ~np.isnan(loss) & ~(np.isfinite(loss) & (loss > 0))
    can_run &= ~lost
    groups = _groups(frame, by, where)
    replay = bool(np.isfinite(loss[can_run]).all())
    pools, index = [], []
    for rows in groups:
        mine = {c: v[rows] for c, v in named.items()}
        ours = _law(law, mine, changes, where)
        used = {c: mine[c] for c in ours.columns}
        for name, values in used.items():
            if not (np.isfinite(values) & (values > 0)).all():
                bad = int(rows[np.argmin(np.isfinite(values) & (values > 0))])
                raise InputError(
                    f"{where}: {name} is {frame.iloc[bad].get(name)} in row {bad}; law {law!r} needs numbers "
                    "above 0 in every row."
                )
        known = ~lost[rows] & ~np.isnan(loss[rows])
        pool = Pool(
            law=ours,
            columns=used,
            loss=np.where(known, loss[rows], np.nan),
            cost=price[rows],
            candidates=np.flatnonzero(can_run[rows] & (known == replay)),
            target=np.flatnonzero(wanted[rows]),
            done=np.flatnonzero(known & ~wanted[rows]) if not replay else np.empty(0, int),
        )
        if len(pool.candidates) and len(pool.target):
            pools.append(pool)
            index.append(rows)
    _check(pools, replay, where)
    total = float(sum(p.cost[p.candidates].sum() for p in pools))
    cheapest = min(p.cost[p.candidates].min() for p in pools)
    if share * total < cheapest:
        raise InputError(
            f"--share {share:g} of {total:.4g} is {share * total:.4g}, and the cheapest run costs "
            f"{cheapest:.4g}: it buys nothing. Raise it to {cheapest / total:.2g} or more."
        )
    choices = tuple(choose(pools, share * total, options))
    predicted: dict[int, float] = {}
    for i, (pool, rows) in enumerate(zip(pools, index, strict=True)):
        seen = np.array([c.row for c in choices if c.group == i], int) if replay else pool.done
        if len(seen) >= len(pool.law.params):
            losses = predict(pool, seen, options)[1]
            predicted |= zip(map(int, rows[pool.target]), map(float, losses), strict=True)
    return Chosen(
        choices=choices,
        rows=tuple(int(index[c.group][c.row]) for c in choices),
        spent=float(sum(c.cost for c in choices)),
        of=total,
        target=words,
        predicted=predicted,
        notes=_left_out(lost),
    )


def _left_out(lost: np.ndarray) -> tuple[str, ...]:
    if not lost.any():
        return ()
    rows = np.flatnonzero(lost)
    named = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return (f"left out: {len(rows)} rows whose loss is infinite or not above 0 (row {named})",)


def _check(pools: list[Pool], replay: bool, where: str) -> None:
    if not pools:
        raise InputError(
            f"{where}: no group has both candidates and target rows; change --target or --by."
        )
    for pool in pools:
        if not replay and len(pool.done) <= len(pool.law.params):
            raise InputError(
                f"{where}: {len(pool.done)} rows have a loss and the law has {len(pool.law.params)} parameters; "
                f"at least {len(pool.law.params) + 1} measured runs are needed (--columns loss=COLUMN)."
            )


def _named(numeric: dict, columns: dict[str, str], where: str) -> dict[str, np.ndarray]:
    """Columns under their own names, ours and the papers' letters; the target as `loss`."""
    out = dict(numeric)
    given = {canonical(k): v for k, v in columns.items()}
    for name, column in given.items():
        if column in numeric:
            out[name] = numeric[column]
        else:
            out[name] = expression.computed(column, numeric, f"{where}: --columns {name}=")
    for letter, name in LETTERS.items():
        if letter in numeric and name not in out:
            out[name] = numeric[letter]
    for name in _LOSS:
        if name in out:
            out["loss"] = out[name]
            break
    return out


def _costs(cost: str, named: dict[str, np.ndarray], where: str) -> np.ndarray:
    values = named[cost] if cost in named else expression.computed(cost, named, f"{where}: --cost")
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{where}: --cost {cost} is {values[row]:g} in row {row}; every candidate needs a cost above 0."
        )
    return values


def _target(frame, target: str | None, price, where: str) -> tuple[np.ndarray, str]:
    if target is not None:
        try:
            return filters.keep(target, frame, None, where).to_numpy(bool), target
        except InputError as error:  # it speaks of the option that keeps rows
            raise InputError(str(error).replace("--where", "--target", 1)) from None
    if _SPLIT in frame:
        wanted = (frame[_SPLIT].astype(str).str.strip() == _TARGET).to_numpy()
        if wanted.any():
            return wanted, f"{_SPLIT}={_TARGET}"
    limit = np.quantile(price, _COSTLY)
    return price >= limit, f"the costliest tenth (cost >= {limit:.4g})"


def _groups(frame, by: str | None, where: str) -> list[np.ndarray]:
    if by is None:
        by = "group" if "group" in frame else None
    elif by not in frame:
        raise InputError(f"{where}: --by {by!r} is no column; there are {', '.join(frame)}.")
    if by is None:
        return [np.arange(len(frame))]
    return list(frame.groupby(by, sort=False).indices.values())


def _law(text: str, columns: dict, changes: Changes | None, where: str) -> Law:
    if expression.is_formula(text):
        usable = {c: c for c in columns if c not in _LOSS}
        law = formula.law(text, usable, data=columns)
    else:
        law = library.get(text)
        missing = [c for c in law.columns if c not in columns]
        if missing:
            raise InputError(
                f"{where}: law {text!r} needs {missing[0]} and the file has {', '.join(columns)}; map it with "
                f"--columns {missing[0]}=COLUMN."
            )
    return (changes or Changes()).of(law)
