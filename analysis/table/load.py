"""Where rows come from: a sweep folder, a records file, any CSV with a column map, the bundled points,
and whatever else a reader is registered for (W&B, by sweeps.tracking.reader).

Whatever the source, a law sees one table with the names of `LAW_COLUMNS`; rows left out are listed
with reasons, and units, counting rules and tokenizers may not be mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError, nearest
from analysis.fitting.result import Dropped
from analysis.table import records, units
from analysis.table.columns import LAW_COLUMNS, mapped, own_names

if TYPE_CHECKING:
    import pandas as pd

_UNMIXABLE = {
    "flops_rule": "budgets counted by different rules are different budgets",
    "tokenizer": "losses per token of different tokenizers are different quantities",
    "vocab_size": "losses per token of different vocabularies are different quantities",
    "data_fingerprint": "losses on different texts are different quantities",
}
BUNDLED = {
    "parcae-140m": "parcae_140m_isoflop.csv",  # points of the paper's figure
    "nano-isoflop": "nano_isoflop.parquet",  # records of sweeps/specs/nano-isoflop.yaml
}


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

    @property
    def sha256(self) -> str:
        """Hash of the rows, not of the file that carried them."""
        return records.sha256(self.frame)

    def keep(self, mask, reason: str) -> Table:
        """The rows where `mask` holds; the others are listed as dropped for `reason`."""
        n_lost = int((~mask).sum())
        if not n_lost:
            return self
        return replace(
            self,
            frame=self.frame[mask].reset_index(drop=True),
            dropped=(*self.dropped, Dropped(reason=reason, n_rows=n_lost)),
        )

    def noting(self, *notes: str) -> Table:
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Found:
    """What a registered reader hands over: rows of a records table, and what it had to leave out."""

    frame: pd.DataFrame  # with the columns of analysis.table.records; checked here
    where: str  # the source as messages name it
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


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
    source: str | Path,
    columns: dict[str, str] | None = None,
    where: tuple[str, ...] = (),
) -> Table:
    """The table of a source.

    Args:
        source: `bundled:NAME`, a sweep folder, a .parquet or .csv file, or what a registered
            reader claims.
        columns: our name or letter -> the file's column, for a file that is not a records table.
        where: conditions that rows must meet, like "mean_recurrence>1" or "preset=140m".

    Raises:
        InputError: when the source is missing, does not parse, or mixes what cannot be mixed.
    """
    text = str(source)
    if text.startswith("bundled:"):
        table = _bundled(text.removeprefix("bundled:"))
    elif (reader := _reader_of(text)) is not None:
        if columns:
            raise InputError(
                f"--columns: {text} holds records with names of their own; leave it out."
            )
        found = reader.read(text)
        table = from_records(found.frame, found.where)
        table = replace(table, dropped=(*found.dropped, *table.dropped)).noting(*found.notes)
    else:
        path = records.find(source)
        frame = records.read_any(path)
        if columns:
            table = _points(frame, columns, path)
        elif set(records.NAMES) <= set(frame.columns):
            table = from_records(frame, str(path))
        else:
            table = _points(frame, own_names(frame, str(path)), path)
    for condition in where:
        table = _filtered(table, condition)
    _refuse_mixtures(table)
    return table


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
    for status in ("diverged", "failed"):
        table = table.keep(table.frame.status != status, f"the run {status}")
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
    if "n_loops" not in frame and "mean_recurrence" not in frame:
        return table
    if "n_loops" not in frame:
        return table.noting("every loss is taken to be at T = mean_recurrence: no n_loops is given")
    if "mean_recurrence" not in frame:
        return table
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
    import numpy as np

    frame = need(table, ("train_flops", "val_loss"), "frontier").frame
    by = (
        "budget_flops"
        if "budget_flops" in frame and frame.budget_flops.notna().all()
        else "train_flops"
    )
    order = frame.sort_values([by, "val_loss"], kind="stable")
    first = ~order[by].duplicated()
    falling = order.val_loss < order.val_loss.cummin().shift(fill_value=np.inf)
    kept = order.index[first & falling]
    return need(table, ("train_flops", "val_loss"), "frontier").keep(
        frame.index.isin(kept), "not the lowest loss at its compute"
    )


def need(table: Table, names: tuple[str, ...], law: str) -> Table:
    """The table with every column a law needs, each value usable.

    Raises:
        InputError: naming the column, or the first row that no law can use.
    """
    import numpy as np
    import pandas as pd

    table = _derived(table, names)
    for name in names:
        if name not in table.frame:
            letter, unit, _ = LAW_COLUMNS[name]
            raise InputError(
                f"{table.source}: law {law!r} needs {name} ({unit}) and the table has "
                f"{', '.join(table.frame.columns)}. Map it with --columns {letter}=COLUMN."
            )
        if name == "trial_id":
            continue
        values = pd.to_numeric(table.frame[name], errors="coerce").to_numpy(float, na_value=np.nan)
        above = LAW_COLUMNS[name][2]
        bad = ~(np.isfinite(values) & (values > above))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{table.source}: {name} is {table.frame[name].iloc[row]} in row {row + 1}; law "
                f"{law!r} needs finite values above {above:g} ({int(bad.sum())} rows have none). "
                f'Correct them, or leave them out with --where "{name}>{above:g}".'
            )
    return table


def disagreements(table: Table) -> list[str]:
    """Runs of the same setting, seeds included, whose losses differ: a sentence for each setting."""
    known = (
        "budget_flops",
        "mean_recurrence",
        "n_tokens",
        "n_params",
        "n_loops",
        "injection",
        "muon_lr",
        "adamw_lr",
        "seed",
        "data_seed",
    )
    same = [c for c in known if c in table.frame]
    spread = table.frame.groupby(same, dropna=False).val_loss.agg(["min", "max", "size"])
    bad = spread[(spread["size"] > 1) & (spread["max"] > spread["min"] * 1.001)]
    sentences = []
    for setting, row in bad.iterrows():
        named = dict(zip(same, setting if isinstance(setting, tuple) else (setting,), strict=True))
        text = ", ".join(f"{k} {v:.4g}" for k, v in named.items() if k in known[:5] and v == v)
        sentences.append(
            f"{int(row['size'])} runs of the same setting ({text}) have losses {row['min']:.4f} to "
            f"{row['max']:.4f}: keep one, or say what differs"
        )
    return sentences


def columns_of(table: Table, names: tuple[str, ...]):
    """The named columns as float arrays that may be written to (pandas 3 hands out read-only ones)."""
    import numpy as np

    return {n: np.array(table.frame[n], dtype=float) for n in names}


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
            from_records(records.read_any(path), str(path)),
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


def _points(frame: pd.DataFrame, columns: dict[str, str], path: Path) -> Table:
    picked, notes = mapped(frame, columns, str(path))
    return Table(
        frame=picked,
        source=str(path),
        kind="points",
        origin=f"rows of {path.name} as given",
        notes=notes,
    )


def _derived(table: Table, names: tuple[str, ...]) -> Table:
    """Columns that follow from others by a definition; each derivation is noted."""
    frame = table.frame
    if (
        "n_tokens" in names
        and "n_tokens" not in frame
        and {"n_params", "train_flops"} <= set(frame)
    ):
        frame = frame.assign(n_tokens=frame.train_flops / (6 * frame.n_params))
        table = replace(table, frame=frame).noting("no tokens given: D taken as C / (6 N)")
    parts = {"n_params", "n_params_core", "mean_recurrence"}
    if "n_params_unrolled" in names and "n_params_unrolled" not in frame and parts <= set(frame):
        unrolled = frame.n_params + (frame.mean_recurrence - 1) * frame.n_params_core
        table = replace(table, frame=frame.assign(n_params_unrolled=unrolled)).noting(
            "N(mu) taken as total + (mu - 1) core parameters"
        )
        frame = table.frame
    if "n_params_once" in names and "n_params_once" not in frame and parts <= set(frame):
        table = replace(
            table, frame=frame.assign(n_params_once=frame.n_params - frame.n_params_core)
        )
        frame = table.frame
    spent = {"budget_flops", "n_tokens"} <= set(frame) and "train_flops" not in frame
    if "train_flops" in names and spent:
        table = replace(table, frame=frame.assign(train_flops=frame.budget_flops)).noting(
            "no FLOPs spent given: the budget is taken for them"
        )
        frame = table.frame
    if "budget_flops" in names and "budget_flops" not in frame and "train_flops" in frame:
        table = replace(table, frame=frame.assign(budget_flops=frame.train_flops)).noting(
            "no budget given: rows of exactly equal train_flops form one"
        )
    return table


def _filtered(table: Table, condition: str) -> Table:
    import operator
    import re

    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*", condition)
    if not found or found[1] not in table.frame:
        raise InputError(
            f"--where {condition!r}: COLUMN OP VALUE is needed, with OP one of = != < <= > >= and "
            f"COLUMN one of {', '.join(table.frame.columns)}."
        )
    name, sign, value = found.groups()
    column = table.frame[name]
    numeric = column.dtype.kind in "iuf"
    try:
        wanted = float(value) if numeric else value
    except ValueError as error:
        raise InputError(
            f"--where {condition!r}: {name} is a number and {value!r} is not."
        ) from error
    compare = {
        "=": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }[sign]
    mask = compare(column, wanted).fillna(False).astype(bool)
    if not mask.any():
        raise InputError(f"{table.source}: no row meets --where {condition!r}; loosen it.")
    return table.keep(mask, f"not {condition}")


def _refuse_mixtures(table: Table) -> None:
    for name, why in _UNMIXABLE.items():
        if name in table.frame and table.frame[name].nunique() > 1:
            values = table.frame[name].unique()
            raise InputError(
                f"{table.source}: the rows mix {name} {' and '.join(str(v)[:12] for v in values[:3])}; "
                f"{why}. Keep one with --where {name}={values[0]}."
            )
