"""Where rows come from: a sweep folder, a records file, any table of runs, the bundled points, and whatever
else a reader is registered for (W&B, by sweeps.tracking.reader; a sweep that runs, by sweeps.source).

Whatever the source, a law sees one table with the names of `LAW_COLUMNS`; rows left out are listed
with reasons, and units, counting rules and tokenizers may not be mixed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError, nearest
from analysis.fitting.result import Dropped
from analysis.table import checks, files, filters, numbers, points, records, sources, units
from analysis.table.columns import info, written
from analysis.table.table import Table

if TYPE_CHECKING:
    import pandas as pd

BUNDLED = {
    "parcae-140m": "parcae_140m_isoflop.csv",  # points of the paper's figure
    "nano-isoflop": "nano_isoflop.parquet",  # records of sweeps/specs/nano-isoflop.yaml
    "state-reveals": "state_reveals.parquet",  # of sweeps/specs/state-reveals.yaml
    "many-rules": "many_rules.parquet",  # of sweeps/specs/many-rules.yaml
}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Found:
    """What a registered reader hands over: rows, and what it had to leave out."""

    frame: pd.DataFrame  # with the columns of analysis.table.records, checked here; or `own` ones
    where: str  # the source as messages name it
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    own: bool = False  # runs of others, under names of their own


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A kind of source read by another room, so that this one need not import its library."""

    claims: Callable[[str], bool]  # cheap: asked about every source
    read: Callable[[str], Found]


_READERS: dict[str, Reader] = {}  # by the scheme that names the kind


def register(scheme: str, reader: Reader) -> None:
    """Let `load` read a further kind of source; registering a scheme again replaces its reader."""
    _READERS[scheme] = reader


def load(
    source: str | Path | pd.DataFrame,
    columns: dict[str, str] | None = None,
    where: tuple[str, ...] = (),
    own: tuple[str, ...] = (),
    unit: str | None = None,
    parts: tuple[str, ...] = (),
) -> Table:
    """The table of a source.

    Args:
        source: a pandas DataFrame (records as from a file, else any table), `bundled:NAME`, what a registered reader claims, or what
            `analysis.table.sources` reads: a file, a pipe, a pattern, a folder.
        columns: our name or letter -> the file's column, for a file that is not a records table; without it,
            columns are taken for their names where those are common, and a note says which.
        where: conditions that rows must meet, like "mean_recurrence>1" or "preset=140m".
        own: names that a formula uses; those that are columns of the file keep their name.
        unit: of the file's losses, as `units.UNITS` says; nats per token without it.
        parts: columns that cut the table on purpose, like its groups: kept as `own`, and their parts may differ.

    Raises:
        InputError: when the source is missing, does not parse, or mixes what cannot be mixed.
    """
    import pandas as pd

    text = None if isinstance(source, pd.DataFrame) else str(source)
    if text is not None and text.startswith("bundled:"):
        _refuse_options(text, columns, unit)
        table = _bundled(text.removeprefix("bundled:"))
    elif text is not None and (reader := _reader_of(text)) is not None:
        found = reader.read(text)
        if found.own:
            raw = files.of_frame(found.frame, found.where)
            table = points.read(raw, columns, where, own, unit, parts)
            return replace(table, dropped=(*found.dropped, *table.dropped)).noting(*found.notes)
        _refuse_options(text, columns, unit)
        table = from_records(found.frame, found.where)
        table = replace(table, dropped=(*found.dropped, *table.dropped)).noting(*found.notes)
    else:
        if isinstance(source, pd.DataFrame):
            raw = files.of_frame(source, "DataFrame")
        else:
            raw = sources.read(source)
        # a notebook adds columns to records; what it then holds is a table of its own
        if columns or not records.is_records(raw.frame, strictly=text is None):
            return points.read(raw, columns, where, own, unit, parts)
        _refuse_options(raw.where, columns, unit)
        table = from_records(raw.frame, raw.where)
    for condition in where:
        met = filters.keep(condition, table.frame, None, table.source)
        table = table.keep(met, f"not {condition}")
    checks.refuse_mixtures(table, parts)
    return table


def rows(source: str | Path) -> Found:
    """The rows of a source under the names that they have there, unchecked."""
    text = str(source)
    if text.startswith("bundled:"):
        return Found(frame=_bundled(text.removeprefix("bundled:")).frame, where=text)
    if reader := _reader_of(text):
        return reader.read(text)
    raw = sources.read(source)
    return Found(frame=raw.frame, where=raw.where, own=not records.is_records(raw.frame))


def _refuse_options(where: str, columns, unit: str | None) -> None:
    if columns:
        raise InputError(f"--columns: {where} holds records with names of their own; leave it out.")
    if unit not in (None, "nats"):
        raise InputError(f"--unit {unit}: {where} holds records in nats per token; leave it out.")


def from_records(frame: pd.DataFrame, where: str) -> Table:
    """The finished runs of a records table; `where` names it in messages."""
    frame = records.validate(frame, where=where)
    units.check_records(frame, where=where)
    sweeps = ", ".join(sorted(frame.sweep.unique()))
    table = Table(
        frame=frame,
        source=f"sweep {sweeps} ({where})",
        kind="sweep",
        origin="measured by the runs of this sweep",
    )
    unfinished = {"diverged": "diverged", "stopped": "was stopped early", "failed": "failed"}
    for status, how in unfinished.items():
        table = table.keep(table.frame.status != status, f"the run {how}")
    if not len(table.frame):
        raise InputError(f"{where}: none of the {len(frame)} rows is of a finished run; run more.")
    rules = table.frame.flops_rule.unique()
    if len(rules) == 1:
        spent = table.frame[f"train_flops_{rules[0]}"]
        table = replace(table, frame=table.frame.assign(train_flops=spent), flops_rule=rules[0])
    return table


def at_training_depth(table: Table) -> Table:
    """The rows evaluated at T = mu_rec, where the training laws hold."""
    frame = table.frame
    if "mean_recurrence" not in frame:
        return table
    if "n_loops" not in frame:
        return table.noting("every loss is taken to be at T = mean_recurrence: no n_loops is given")
    mask = frame.n_loops == frame.mean_recurrence
    at_depth = table.keep(mask, "evaluated at another number of loops than mean_recurrence")
    if not len(at_depth.frame):
        raise InputError(
            f"{table.source}: no row is evaluated at n_loops = mean_recurrence; the law needs the "
            "loss there. Add mean_recurrence to the evaluation's loops and collect again."
        )
    return at_depth


def on_the_frontier(table: Table) -> Table:
    """The rows that no other row beats with as little compute or less."""
    highest, table = table.drop_highest, replace(table, drop_highest=0)
    table = need(table, ("train_flops", "val_loss"), "frontier")
    frame, by = table.frame, spent_by(table)
    order = frame.sort_values([by, "val_loss"], kind="stable")
    first = ~order[by].duplicated()
    falling = order.val_loss < order.val_loss.cummin().shift(fill_value=float("inf"))
    kept = order.index[first & falling]
    front = table.keep(frame.index.isin(kept), "not the lowest loss at its compute")
    return replace(front, drop_highest=highest)


def spent_by(table: Table) -> str:
    """What runs of equal compute share: their budget, where every row has one, else what they spent."""
    budgets = table.frame.get("budget_flops")
    return "train_flops" if budgets is None or budgets.isna().any() else "budget_flops"


def need(table: Table, names: tuple[str, ...], law: str) -> Table:
    """The table with every column a law needs, each value usable, without the losses that `--drop-highest` names.

    Raises:
        InputError: naming the column, or the first row that no law can use.
    """
    table = _derived(table, names)
    for name in names:
        if name not in table.frame:
            raise InputError(_missing(table, name, law))
        if name == "trial_id":
            continue
        values = numbers.floats(table.frame[name])
        bad = ~((values > info(name)[2]) & (values.abs() < float("inf")))
        if bad.any():
            raise InputError(_unusable(table, name, bad.to_numpy().nonzero()[0], law))
        if table.frame[name].dtype.kind not in "iuf":
            table = replace(table, frame=table.frame.assign(**{name: values}))
    return without_highest(table)


def without_highest(table: Table) -> Table:
    """The rows without those of the highest losses, as many as `--drop-highest` asked for; cells that are no
    number stay, to be refused or left out for what they are.

    Raises:
        InputError: as many as there are, or no losses.
    """
    k, table = table.drop_highest, replace(table, drop_highest=0)
    if k == 0:
        return table
    loss = numbers.floats(table.frame.val_loss) if "val_loss" in table.frame else None
    if loss is None or not 0 < k < loss.notna().sum():
        most = 0 if loss is None else max(int(loss.notna().sum()) - 1, 0)
        raise InputError(
            f"--drop-highest {k}: needs a number from 1 to {most}, of the {most + 1} losses that the law uses, and "
            "a val_loss column."
        )
    limit = loss.nlargest(k).iloc[-1]
    return table.keep(~(loss >= limit), f"loss at or above the {k}th highest, {limit:.4f}")


def _unusable(table: Table, name: str, rows, law: str) -> str:
    above = info(name)[2]
    needed, least = (
        (f"above {above:g}", f">{above:g}")
        if above >= 0
        else (f"of at least {above + 1:g}", f">={above + 1:g}")
    )
    found = (
        f"{table.source}: {name} is {table.frame[name].iloc[rows[0]]} in row {rows[0] + 1}; law {law!r} "
        f"needs finite values {needed}"
    )
    if len(rows) == len(table.frame):
        cure = written(table.columns, **{name: "COLUMN"})
        return f"{found}, and none of the {len(rows)} rows has one. Map another column with {cure}."
    return (
        f"{found} ({len(rows)} rows have none). Correct them, or leave them out with "
        f'--where "{name}{least}".'
    )


def _missing(table: Table, name: str, law: str) -> str:
    unit = info(name)[1]
    known = ", ".join(table.frame.columns)
    others = f"; its other columns are {', '.join(table.unmapped)}" if table.unmapped else ""
    if name in table.unsure:
        choice = table.unsure[name]
        return (
            f"{table.source}: law {law!r} needs {name} ({unit}), and {' and '.join(choice)} may both be it. "
            f"Say which, like {written(table.columns, **{name: choice[0]})}."
        )
    cure = f"Map it with {written(table.columns, **{name: 'COLUMN'})}"
    step = next((c for c in table.unmapped if c.lower().endswith("step")), "")
    if name == "n_tokens" and step:
        per = written(table.columns, n_tokens=f"{step}*NUMBER")
        cure += f", or from steps, NUMBER being the tokens of one, with {per}"
    if name == "val_loss" and (unit_there := units.named(table.unmapped)):
        cure += f"; {unit_there[0]!r} is taken with --unit {unit_there[1]}"
    if name == "n_tokens" and "n_params" in table.frame:
        log = next((c for c in table.unmapped if "log" in c.lower()), "")
        spent = f"10**{log}" if log else "COLUMN"
        cure += (
            f", or the FLOPs, for D = C / (6 N), with {written(table.columns, train_flops=spent)}"
        )
    if name == "val_loss" and len(table.unmapped) > 1:
        cure += (
            "; a file with a column of losses per run needs a row per run and loss first, as pandas' "
            "DataFrame.melt makes it"
        )
    return f"{table.source}: law {law!r} needs {name} ({unit}) and the table has {known}{others}. {cure}."


def columns_of(table: Table, names: tuple[str, ...]):
    """The named columns as float arrays that may be written to (pandas 3 hands out read-only ones)."""
    return {n: table.frame[n].to_numpy(dtype=float, copy=True) for n in names}


def _reader_of(text: str) -> Reader | None:
    for reader in _READERS.values():
        if reader.claims(text):
            return reader
    scheme, colon, rest = text.partition(":")
    is_scheme = bool(colon) and scheme.replace("-", "").isalpha() and not rest.startswith("//")
    if is_scheme and not Path(text).exists():
        raise InputError(
            f"{text}: nothing here reads {scheme!r} sources{nearest(scheme, ('bundled', *_READERS))}. "
            f"Known: {', '.join(('bundled', *_READERS))}, folders and files."
        )
    return None


def _bundled(name: str) -> Table:
    import pandas as pd

    if name not in BUNDLED:
        raise InputError(
            f"bundled:{name}: no such data{nearest(name, tuple(BUNDLED))}. "
            f"Bundled with the project: {', '.join(BUNDLED)}."
        )
    path = Path(__file__).parents[1] / "bundled" / BUNDLED[name]
    if path.suffix == ".parquet":
        return replace(
            from_records(pd.read_parquet(path), str(path)),
            source=f"bundled:{name}",
            origin=f"measured by this project: its sweep sweeps/specs/{name}.yaml",
        )
    frame = pd.read_csv(path)
    return Table(
        frame=frame.drop(columns="reading"),
        source=f"bundled:{name}",
        kind="points",
        origin="points read from the main figure of arXiv:2604.12946 (CC BY 4.0); not measured here",
        flops_rule="paper (estimated per token from Appendix D)",
        notes=(
            f"{int((frame.reading != 'clean').sum())} of {len(frame)} points are partly hidden in "
            "the figure they were read from",
        ),
    )


# A column that a law needs and the table lacks: what it follows from by its definition, and the note
_DEFINITIONS = {
    "n_tokens": ("train_flops / (6 * n_params)", "no tokens given: D taken as C / (6 N)"),
    "n_params_unrolled": (
        "n_params + (mean_recurrence - 1) * n_params_core",
        "N(mu) taken as total + (mu - 1) core parameters",
    ),
    "n_params_once": ("n_params - n_params_core", "N_once taken as total - core parameters"),
    "train_flops": ("budget_flops", "no FLOPs spent given: the budget is taken for them"),
    "budget_flops": ("train_flops", "no budget given: C taken"),
}


def _derived(table: Table, names: tuple[str, ...]) -> Table:
    """The table with columns that follow from others by a definition."""
    if "n_tokens" in names and "n_tokens" not in table.frame and "train_flops" in table.frame:
        units.refuse_other_flops(table.frame.train_flops, table.columns, table.source)
    for name, (formula, note) in _DEFINITIONS.items():
        needed = re.findall(r"[a-z_]+", formula)
        asked = ["n_tokens"] if name == "train_flops" else []  # what a token costs is asked then
        if name in names and name not in table.frame and {*needed, *asked} <= set(table.frame):
            given = table.frame[needed].apply(numbers.floats)
            values: Any = given.eval(formula, engine="python")  # a column, of columns
            table = replace(table, frame=table.frame.assign(**{name: values})).noting(note)
            if name == "budget_flops":
                table = checks.with_grouped_budgets(table)
    return table
