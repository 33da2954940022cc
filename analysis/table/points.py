"""A stranger's rows under our names: which column is which, and which rows count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.table import checks, filters, guess, numbers, units
from analysis.table.columns import LETTERS, canonical, info, mapped, written
from analysis.table.files import Raw
from analysis.table.table import Table

if TYPE_CHECKING:
    import pandas as pd

_DONE = ("finished", "done", "completed", "success", "succeeded", "ok")


def read(
    raw: Raw,
    columns: dict[str, str] | None,
    where: tuple[str, ...],
    own: tuple[str, ...] = (),
    unit: str | None = None,
    parts: tuple[str, ...] = (),
) -> Table:
    """A file's rows under our names; conditions act before anything is judged."""
    names = list(raw.frame.columns)
    if not len(raw.frame):
        raise InputError(
            f"{raw.where}: has a header ({', '.join(names)}) and no rows; add the runs."
        )
    columns, words, unsure = _mapping(raw, columns, own, unit)
    frame, called = mapped(raw, columns)
    for name in (*own, *parts):
        if name in names and LETTERS.get(name, name) not in frame:
            frame[name] = numbers.parse(raw.frame[name], "decimal" if raw.decimal_comma else None)
            called[name] = name
    if unit is not None:
        words = (*words, *units.to_nats(frame, raw.frame, unit, raw.where))
    unmapped = tuple(n for n in names if n not in called.values())
    table = Table(
        frame=frame,
        source=raw.where,
        kind="points",
        origin=f"rows of {Path(raw.where).name} as given",
        own=called,
        unmapped=unmapped,
        others=raw.frame[list(unmapped)],
        unsure=unsure,
        columns=columns,
        notes=(*raw.notes, *words),
    )
    rows = raw.frame
    for condition in where:
        met = filters.keep(condition, table.frame, rows, table.source)
        reason = filters.reason(condition, table.frame, rows)
        table, rows = table.keep(met, reason), rows[met].reset_index(drop=True)
    # one measurement listed twice; two measurements differ in the last digits of the loss
    table = table.keep(~rows.astype("str").duplicated(), "equal to another row in every cell")
    table = _with_run_names(table)
    notes = units.check_mapped(table.frame, columns, raw.where, unit)
    table = table.noting(*notes, *_unfinished(rows))
    checks.refuse_mixtures(table, parts)
    return checks.with_grouped_budgets(table) if "budget_flops" in table.frame else table


def _mapping(raw: Raw, given: dict[str, str] | None, own: tuple[str, ...], unit: str | None):
    """(our name -> the file's column, notes, what is ambiguous); given columns are all that count."""
    names = list(raw.frame.columns)
    columns, unsure = dict(given or {}), {}
    words: tuple[str, ...] = ()
    if given is None:
        found = guess.recognised(raw.frame)
        columns, unsure = dict(found.columns), found.unsure
        taken = {n: columns[n] for n in found.by_name}
        if unit is not None and "val_loss" not in columns and (loss := units.named(names)):
            columns["val_loss"] = taken["val_loss"] = loss[0]
        if not set(columns) - {"trial_id", "seed"} and not (unsure or set(own) & set(names)):
            raise InputError(
                f"{raw.where}: has columns {', '.join(names)}; none is a name of ours. "
                'Say which is which with --columns, like N="Model Size",C="Training FLOP",loss=loss.'
            )
        if taken:
            pairs = ", ".join(f"{info(n)[0]} = {c}" for n, c in taken.items())
            words = (f"columns are taken by their names: {pairs}; the same as {written(columns)}",)
    columns = {canonical(k): v for k, v in columns.items()}
    for name in own:
        ours = LETTERS.get(name, "")
        if ours and name in names and ours not in columns and name not in columns.values():
            columns[ours] = name
    return columns, words, unsure


def _with_run_names(table: Table) -> Table:
    if "trial_id" not in table.frame:
        return table
    called = table.called("trial_id")
    known = table.frame.trial_id.notna()
    if not known.any():
        raise InputError(
            f"{table.source}: column {called!r} names no run; map another with run=COLUMN."
        )
    table = table.keep(known, f"no run is named in column {called!r}")
    return replace(table, frame=table.frame.assign(trial_id=table.frame.trial_id.astype("str")))


def _unfinished(rows: pd.DataFrame) -> list[str]:
    """Runs that a state column calls crashed or running are named: their losses are in the fit."""
    out = []
    for column in rows.columns:
        if column.lower().rpartition("_")[2] not in ("state", "status"):
            continue
        states = rows[column].dropna().astype(str)
        done = states[states.str.lower().isin(_DONE)]
        if len(done) and len(done) < len(states):
            rest = states.drop(done.index).value_counts()
            text = " and ".join(f"{n} as {state}" for state, n in rest.items())
            out.append(
                f"column {column!r} gives {text} of {len(states)} rows, and they are fitted too; leave "
                f"them out with --where {column}={done.iloc[0]}"
            )
    return out
