"""A table of candidate runs, as a file gives it: law, costs, target rows, groups."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.choices import Changes
from analysis.design.pool import BILL, Choice, Options, Pool, choose, predict
from analysis.errors import InputError
from analysis.laws import expression, formula, library
from analysis.laws.law import Law
from analysis.table import filters, guess, load, numbers
from analysis.table.columns import info
from analysis.table.table import Table

_SPLIT, _TEST = "split", "test"  # the column that says which rows are wanted, and its word for it
_GROUP = "group"
_COSTLY = 0.9  # without one, the candidates beyond this quantile of cost are what is predicted
_MOST = 5000  # rows of a group: arrays of their squares take 1 GB


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
    where: tuple[str, ...] = (),
    changes: Changes | None = None,
    options: Options | None = None,
) -> Chosen:
    """Choose rows of a table of candidate runs with their costs, up to a share of the whole cost.

    Where every row has a loss this replays a study: a loss is read once its row is chosen. Where some have
    none, those with one are taken as run already, and the choice is among the others. A row whose loss is
    infinite or not above 0 was run and left none: it is no candidate. Losses of rows that `target` or `split`
    names are never read.

    Args:
        path: any source that a law is fitted to.
        law: a law of the registry or a formula in the file's columns.
        cost: a column, or an expression of columns like 6*N*D.
        target: a condition on columns, like "N>1e9"; None: rows whose `split` is `test`, or where there is
            no such column the costliest tenth of the candidates.
        by: a column of groups that are fitted by themselves and share the budget; None: `group` where
            the file has one.
        columns: our name or letter -> the file's column.
        where: conditions that rows must meet.

    Raises:
        InputError: a file, column, condition or share that does not make sense.
    """
    if not 0 < share <= 1:
        raise InputError(f"--share is {share:g}; a share of the pool's cost in (0, 1] is needed.")
    parts = (by or _GROUP, _SPLIT, _column(target))  # these may differ on purpose
    own = _names(law, cost, target, columns)
    table = load.load(path, columns, where, own, parts=parts)
    form = _law(law, table, changes)
    if not form.per_run and "n_loops" not in form.columns:
        table = load.at_training_depth(table)
    table = load.need(table, form.columns, law)
    for name, values in load.columns_of(table, form.columns).items():
        _refuse_below_0(
            table, name, values, True, f"law {law!r} needs numbers above 0 in every row"
        )
    price, loss = _costs(cost, table), _losses(table, form)
    wanted, words, named = _target(table, target, price)
    hidden = wanted & named
    known = np.isfinite(loss) & (loss > 0) & ~hidden
    lost = ~np.isnan(loss) & ~(np.isfinite(loss) & (loss > 0)) & ~hidden
    can_run = ~(hidden | lost)
    replay = bool(known[can_run].all())
    done = known & (not replay)
    can_run &= known == replay
    _refuse_below_0(table, f"--cost {cost}", price, can_run, "every candidate needs a cost above 0")
    groups, notes = _groups(table, by, can_run, wanted)
    pools, index = [], []
    for rows in groups:
        rows = rows[(can_run | wanted | done)[rows]]
        part = table.keep(np.isin(np.arange(len(loss)), rows), "of another group")
        ours = _law(law, part, changes)
        pools.append(
            Pool(
                law=ours,
                columns=load.columns_of(part, ours.columns),
                loss=np.where(known, loss, np.nan)[rows],
                cost=price[rows],
                candidates=np.flatnonzero(can_run[rows]),
                target=np.flatnonzero(wanted[rows]),
                done=np.flatnonzero(done[rows]),
            )
        )
        index.append(table.numbers[rows])
    total = float(sum(p.cost[p.candidates].sum() for p in pools))
    said = _said_of_losses(form, replay, known, can_run, int((hidden & (loss > 0)).sum()))
    _refuse_too_little(share, total, pools, said)
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
        notes=(
            *table.notes,
            *(f"left out: {d.n_rows} rows: {d.reason}" for d in table.dropped),
            *_left_out(table.numbers[lost]),
            *said,
            *([f"no row's {_SPLIT} is {_TEST}"] if _SPLIT in table.frame and not named else []),
            *notes,
            *(
                []
                if choices
                else ["no run within the share lowers the error to expect: raise it, or run none"]
            ),
        ),
    )


def _names(law: str, cost: str, target: str | None, columns) -> tuple[str, ...]:
    """What may be columns of the file under names of their own."""
    own = [cost, *re.findall(r"[^\W\d]\w*", cost)]
    own += [_column(target)]
    if expression.is_formula(law):
        own += expression.names_in(law)
    elif columns:  # which are all that is mapped
        own += [n for c in library.get(law).columns for n in (info(c)[0], c)]
    return tuple(own)


def _column(condition: str | None) -> str:
    return re.split("[<>=!]", condition or "")[0].strip(" \"'")


def _refuse_too_little(share: float, total: float, pools: list[Pool], said: list[str]) -> None:
    cheapest = min(p.cost[p.candidates].min() for p in pools)
    if share * total * (1 + BILL) >= cheapest:
        return
    needed = cheapest / total
    digit = 10.0 ** (np.floor(np.log10(needed)) - 1)  # the second, which is rounded up
    raise InputError(
        f"--share {share:g} of {total:.4g} is {share * total:.4g}, and the cheapest run costs {cheapest:.4g}: it buys "
        f"nothing. Raise it to {np.ceil(needed / digit - 1e-9) * digit:.2g} or more."
        + "".join(f" ({note})" for note in said)
    )


def _left_out(rows: np.ndarray) -> tuple[str, ...]:
    if not len(rows):
        return ()
    named = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return (f"left out: {len(rows)} rows whose loss is infinite or not above 0 (row {named})",)


def _said_of_losses(form: Law, replay: bool, known, can_run, n_hidden: int) -> list[str]:
    if replay:
        return [
            "every row that is left has a loss, so this replays a study: rows that are measured are chosen"
        ]
    name, n = info(form.target)[0], int(known.sum())
    out = [
        f"{n} rows have a {name} and count as run already; {int(can_run.sum())} without one are candidates"
        if n
        else f"no row has a {name} (name its column, if there is one, with --columns {name}=COLUMN): the cheapest runs come first, one for each "
        "parameter; measure them and ask again"
    ]
    return out + [f"{n_hidden} target rows have a {name}, which is not read"] * (n_hidden > 0)


def _losses(table: Table, form: Law) -> np.ndarray:
    """(R,) the law's target, NaN where it is not measured."""
    if form.target in table.frame:
        return numbers.floats(table.frame[form.target]).to_numpy(float)
    if table.others is not None:
        found = guess.recognised(table.others)
        if form.target in {**found.columns, **found.unsure}:  # it is there and not mapped
            load.need(table, (form.target,), form.name)
    return np.full(len(table.frame), np.nan)


def _refuse_below_0(table: Table, name: str, values: np.ndarray, among, needs: str) -> None:
    bad = among & ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{table.source}: {name} is {values[row]:g} in row {table.numbers[row]}, counted from 0; {needs}."
        )


def _costs(cost: str, table: Table) -> np.ndarray:
    read = {
        n: numbers.floats(numbers.parse(c))
        for n, c in filters.named(table.frame, table.others).items()
    }
    named = {n: c.to_numpy(float) for n, c in read.items() if c.notna().any()}
    if cost in named:
        return named[cost]
    return expression.computed(cost, named, f"{table.source}: --cost")


def _target(table: Table, target: str | None, price) -> tuple[np.ndarray, str, bool]:
    """(R,) the rows to predict, in words, and whether they were named: such are never run."""
    if target is not None:
        try:
            met = filters.keep(target, table.frame, table.others, table.source)
        except InputError as error:  # it speaks of the option that keeps rows
            raise InputError(str(error).replace("--where", "--target", 1)) from None
        return met.to_numpy(bool), target, True
    if _SPLIT in table.frame:
        wanted = table.frame[_SPLIT].astype(str).str.strip().str.lower() == _TEST
        if wanted.any():
            return wanted.to_numpy(bool), f"{_SPLIT}={_TEST}", True
    limit = np.nanquantile(price, _COSTLY)
    return price >= limit, f"the costliest tenth (cost >= {limit:.4g})", False


def _groups(table: Table, by: str | None, can_run, wanted) -> tuple[list[np.ndarray], list[str]]:
    """Rows of each group that has something to run and something to predict, and what has not, in words."""
    cells, name = filters.named(table.frame, table.others), by or _GROUP
    there: dict = {"": np.arange(len(wanted))}
    if name in cells:
        there = dict(cells[name].groupby(cells[name], sort=False).indices)
    elif by is not None:
        raise InputError(f"{table.source}: --by {by!r} is no column; there are {', '.join(cells)}.")
    out, notes = [], []
    empty = len(wanted) - sum(map(len, there.values()))
    if empty:
        notes.append(f"left out: {empty} rows whose {name} is empty")
    for group, rows in there.items():
        lacks = [
            w
            for w, has in (("candidates", can_run), ("target rows", wanted))
            if not has[rows].any()
        ]
        if lacks:
            notes.append(
                f"left out: {len(rows)} rows of {name} {group}, which has no {' and no '.join(lacks)}"
            )
        elif len(rows) > _MOST:
            raise InputError(
                f"{table.source}: {len(rows)} rows are chosen from at once, and their covariances need memory for "
                f"{_MOST} at most; cut them with --by or --where."
            )
        else:
            out.append(rows)
    if not out:
        raise InputError(
            f"{table.source}: no group has both candidates and target rows; change --target or --by."
        )
    return out, notes


def _law(text: str, table: Table, changes: Changes | None) -> Law:
    form = formula.of_table(text, table) if expression.is_formula(text) else library.get(text)
    return (changes or Changes()).of(form)
