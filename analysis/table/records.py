"""The records table: one row per (trial, n_loops). The only contract between sweeps and analysis.

`COLUMNS` is the one place that says which columns there are, their dtype, unit and meaning.
`validate` refuses what does not fit; nothing is repaired or guessed. Importing this module loads
neither pandas nor NumPy.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from analysis.errors import InputError, nearest
from analysis.table import sources

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("done", "diverged", "stopped", "failed")
ARCHITECTURES = ("parcae", "transformer")
FLOPS_RULES = ("paper", "code", "exact")
FILE_NAME = sources.FOLDER_HOLDS


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    name: str
    kind: Literal["text", "int", "float"]
    unit: str
    meaning: str
    nullable: bool = False

    @property
    def dtype(self) -> Literal["string", "Int64", "int64", "float64"]:
        """The pandas dtype a validated table has."""
        if self.kind == "int":
            return "Int64" if self.nullable else "int64"
        return "string" if self.kind == "text" else "float64"


COLUMNS: tuple[Column, ...] = (
    Column("trial_id", "text", "-", "hash of what was trained"),
    Column("sweep", "text", "-", "name of the sweep that holds the run"),
    Column("status", "text", "-", "done, diverged, stopped (early, by a scheduler) or failed"),
    Column("status_reason", "text", "-", "why a run is not done; null when it is", True),
    Column("preset", "text", "-", "label of the model's shape"),
    Column("architecture", "text", "-", "parcae (looped) or transformer (fixed depth)"),
    Column(
        "injection",
        "text",
        "-",
        "how e enters the loop: parcae, add, concat, ...; none in a transformer",
        True,
    ),
    Column("d_model", "int", "channels", "width of the residual stream"),
    Column("n_layers", "int", "layers", "unique layers: prelude + core + coda"),
    Column("n_params", "int", "parameters", "all of them, a tied head once"),
    Column("n_params_core", "int", "parameters", "of the looped part, once; none in a transformer"),
    Column("n_params_unrolled", "int", "parameters", "N(mu) = total + (mu - 1) * core"),
    Column("n_params_once", "int", "parameters", "outside the looped part: total - core"),
    Column("mean_recurrence", "int", "loops", "declared mu_rec; 1 for a transformer"),
    Column("mean_backprop_depth", "int", "loops", "mu_bwd: of these, with gradient"),
    Column("depth_scheme", "text", "-", "how depths were drawn; null for a transformer", True),
    Column("budget_flops", "float", "FLOPs", "what the spec asked for; null: tokens fixed", True),
    Column("flops_rule", "text", "-", "the rule that budget_flops is counted in"),
    Column("train_flops_paper", "float", "FLOPs", "spent, by Appendix D of the paper"),
    Column("train_flops_code", "float", "FLOPs", "spent, as the published code counts"),
    Column("train_flops_exact", "float", "FLOPs", "spent, by the matmuls that ran"),
    Column("n_tokens", "int", "tokens", "trained on; n_steps * batch_tokens when done"),
    Column("n_steps", "int", "steps", "optimiser steps of the whole training"),
    Column("batch_tokens", "int", "tokens", "per optimiser step"),
    Column("context", "int", "tokens", "length of a sequence"),
    Column("n_loops", "int", "loops", "loops run in this evaluation, T"),
    Column("val_loss", "float", "nats per token", "validation loss; null unless done", True),
    Column("val_bpb", "float", "bits per byte", "the same loss per byte; null unless done", True),
    Column("val_tokens", "int", "tokens", "evaluated on; 0 when nothing was evaluated"),
    Column("seed", "int", "-", "initialisation, initial states, depths"),
    Column("data_seed", "int", "-", "order of the rows"),
    Column("data_fingerprint", "text", "-", "sha256 of the source text"),
    Column("tokenizer", "text", "-", "bytes or bpe-<ids>"),
    Column("vocab_size", "int", "ids", "ids the tokenizer uses"),
    Column("data_epochs", "float", "epochs", "passes over the training text, n_tokens / unique"),
    Column("muon_lr", "float", "-", "peak learning rate of Muon"),
    Column("adamw_lr", "float", "-", "peak learning rate of AdamW"),
    Column("diverged_step", "int", "steps", "where the loss stopped being finite", True),
    Column("wall_s", "float", "s", "training time, restarts included", True),
    Column("tokens_per_s", "float", "tokens/s", "trained per second of wall_s", True),
    Column("device", "text", "-", "what it ran on, by name"),
    Column("torch_version", "text", "-", "torch.__version__"),
    Column("git_commit", "text", "-", "of this project; null outside a checkout", True),
    Column("spec_sha256", "text", "-", "of the spec the run was planned from", True),
)
# Of what only some sweeps have; first a generated corpus, of which more is known than its text
KNOWN_COLUMNS: tuple[Column, ...] = (
    Column("corpus", "text", "-", "what was read, by name", True),
    Column("loss_floor", "float", "nats per token", "no model can be better; null for text", True),
    Column(
        "loss_by_reach",
        "text",
        "nats per token",
        "JSON: steps that a reader composes -> the loss it is bound by",
        True,
    ),
    Column("floor_by_label", "text", "nats per token", "JSON: label -> its tokens' floor", True),
    Column(
        "val_loss_by_label",
        "text",
        "nats per token",
        "JSON: label -> [tokens, loss]; the label is a gap, the actions before a state",
        True,
    ),
    # Of a sweep with trunks: FLOPs that were run are train_flops_* * (1 - shared_steps / n_steps)
    Column("parent_trial_id", "text", "-", "whose checkpoint the run was to begin from", True),
    Column("shared_steps", "int", "steps", "of n_steps, made by the parent and its parents", True),
    # Of a sweep with `evaluation.every`
    Column(
        "val_history",
        "text",
        "nats per token",
        "JSON: [[step, validation loss at mean_recurrence loops], ...] during training",
        True,
    ),
)
# What `parcae score` found: a task and its metric after this; null where a model was not scored
SCORE_PREFIX = "score_"
NAMES = tuple(c.name for c in COLUMNS)
_AT_LEAST_ONE = (
    "d_model",
    "n_layers",
    "n_params",
    "n_params_unrolled",
    "mean_recurrence",
    "mean_backprop_depth",
    "n_steps",
    "batch_tokens",
    "context",
    "n_loops",
    "vocab_size",
)
# what a run spent; one that ended before its first step spent nothing
_SPENT = ("train_flops_paper", "train_flops_code", "train_flops_exact", "n_tokens")


def validate(df: pd.DataFrame, where: str = "records") -> pd.DataFrame:
    """A copy in canonical column order, dtypes and row order (trial_id, n_loops).

    Args:
        where: named in messages: the file, or the sweep, the table came from.

    Raises:
        InputError: at the first thing that does not fit `COLUMNS` or contradicts itself.
    """
    _check_names(df, where)
    present = [*COLUMNS, *(c for c in KNOWN_COLUMNS if c.name in df.columns)]
    scores = sorted(str(n) for n in df.columns if str(n).startswith(SCORE_PREFIX))
    present += [Column(n, "float", "-", "score of a task", nullable=True) for n in scores]
    out = df[[c.name for c in present]].copy()
    for column in present:
        out[column.name] = _typed(out[column.name], column, where)
    _check_values(out, where)
    repeated = out.duplicated(["trial_id", "n_loops"])
    if repeated.any():
        row = out[repeated].iloc[0]
        raise InputError(
            f"{where}: trial {row.trial_id} has {int(repeated.sum()) + 1} rows for n_loops="
            f"{row.n_loops}; one row per (trial, n_loops) is needed. Keep one evaluation of it."
        )
    return out.sort_values(["trial_id", "n_loops"], kind="stable").reset_index(drop=True)


def load(source: str | Path) -> pd.DataFrame:
    """The validated table of a Parquet or CSV file, or of a sweep folder holding records.parquet."""
    raw = sources.read(source)
    return validate(raw.frame, where=raw.where)


def save(df: pd.DataFrame, path: str | Path) -> Path:
    """Validate and write (.parquet or .csv), atomically: a reader never sees half a table."""
    path = Path(path)
    table = validate(df, where=str(path))
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(
            f"{path}: records are written as .parquet or .csv, not {path.suffix or 'without a suffix'!r}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique, since two may write at once, also on two machines
    partial = path.with_name(f".{path.name}.{os.uname().nodename}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False, lineterminator="\n")
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error}); make room or see to the permissions, and run it again."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def sha256(df: pd.DataFrame) -> str:
    """Hash of a table's content: names, values and row order, not the file that carried it."""
    text = df.to_csv(index=False, lineterminator="\n", float_format="%.17g")
    return hashlib.sha256(text.encode()).hexdigest()


def is_records(df: pd.DataFrame, *, strictly: bool = False) -> bool:
    """Whether a table has every column of records; strictly, and no other."""
    return set(NAMES) <= set(df.columns) and not (strictly and _unknown(df))


def _unknown(df: pd.DataFrame) -> list[str]:
    known = (*NAMES, *(c.name for c in KNOWN_COLUMNS))
    return [str(n) for n in df.columns if n not in known and not str(n).startswith(SCORE_PREFIX)]


def _check_names(df: pd.DataFrame, where: str) -> None:
    missing = [n for n in NAMES if n not in df.columns]
    unknown = _unknown(df)
    if unknown:
        raise InputError(
            f"{where}: unknown column {unknown[0]!r}{nearest(unknown[0], missing or NAMES)}. "
            f"The {len(NAMES)} columns of a records table are listed in analysis/table/records.py."
        )
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of {len(NAMES)} columns missing ({', '.join(missing[:6])}"
            f"{', ...' if len(missing) > 6 else ''}); map another table with --columns instead."
        )
    if not len(df):
        raise InputError(f"{where}: the table has no rows; a run must have ended before a fit.")


def _typed(values: pd.Series, column: Column, where: str) -> pd.Series:
    import pandas as pd

    empty = values.isna()
    if empty.any() and not column.nullable:
        raise InputError(
            f"{where}: column {column.name!r} is empty in {int(empty.sum())} of {len(values)} rows;"
            f" every row needs it ({column.meaning})."
        )
    if column.kind == "text":
        return values.astype("string")
    try:
        numbers = pd.to_numeric(values).astype("float64")
        if column.kind == "int" and ((numbers % 1).dropna() != 0).any():
            raise ValueError(f"not whole: {numbers[(numbers % 1) > 0].iloc[0]}")
        if column.kind == "int":
            return pd.to_numeric(values).astype(column.dtype)
        return numbers
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"{where}: column {column.name!r} needs a {column.kind} in {column.unit}: {error}."
        ) from error


def _check_values(df: pd.DataFrame, where: str) -> None:
    for name, allowed in (
        ("status", STATUSES),
        ("architecture", ARCHITECTURES),
        ("flops_rule", FLOPS_RULES),
    ):
        wrong = df.loc[~df[name].isin(allowed), name]
        if len(wrong):
            raise InputError(
                f"{where}: {name} is {wrong.iloc[0]!r} in {len(wrong)} rows; it must be one of "
                f"{', '.join(allowed)}."
            )
    for bad, name, needed in _contradictions(df):
        bad = bad.fillna(False)  # a null in a nullable column is not a contradiction
        if bad.any():
            row = df[bad].iloc[0]
            raise InputError(
                f"{where}: trial {row.trial_id} (n_loops={row.n_loops}) has {name}={row[name]}; it must "
                f"be {needed}. {int(bad.sum())} rows are concerned; correct them or leave them out."
            )


def _contradictions(df: pd.DataFrame) -> Iterator[tuple[pd.Series, str, str]]:
    """Which rows cannot be, the column at fault, and what it must be."""
    for name in _AT_LEAST_ONE:
        yield df[name] < 1, name, "at least 1"
    yield df.budget_flops <= 0, "budget_flops", "above 0"
    done = df.status == "done"
    for name in _SPENT:
        yield done & (df[name] <= 0), name, "above 0 for a run that is done"
        yield df[name] < 0, name, "0 or more"
    mu, core, planned = df.mean_recurrence, df.n_params_core, df.n_steps * df.batch_tokens
    yield df.mean_backprop_depth > mu, "mean_backprop_depth", "at most mean_recurrence"
    looped = (df.architecture == "transformer") & (mu != 1)
    yield looped, "mean_recurrence", "1 for a transformer"
    unequal = done & (df.n_tokens != planned)
    yield unequal, "n_tokens", "n_steps * batch_tokens for a run that is done"
    # not less: tables written before gave runs that had not ended well their planned tokens
    yield df.n_tokens > planned, "n_tokens", "at most n_steps * batch_tokens"
    wrong = df.n_params_unrolled != df.n_params + (mu - 1) * core
    yield wrong, "n_params_unrolled", "n_params + (mean_recurrence - 1) * core"
    yield df.n_params_once != df.n_params - core, "n_params_once", "n_params - n_params_core"
    lost = ~((df.val_loss > 0) & (df.val_loss < float("inf")))
    yield done & lost, "val_loss", "finite and above 0 for a run that is done"
    yield ~done & df.val_loss.notna(), "val_loss", "empty unless the run is done"
    unexplained = ~done & df.status_reason.isna()
    yield unexplained, "status_reason", "a reason when the run is not done"
