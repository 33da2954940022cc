"""Which column of a stranger's table is which, by names that are common; and the command that follows."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from analysis.table import files
from analysis.table.columns import LAW_COLUMNS, LETTERS, written

if TYPE_CHECKING:
    from pathlib import Path

# written as `_plain` leaves a name; the first that a table has is taken
COMMON = {
    "val_loss": "val_loss eval_loss validation_loss valid_loss test_loss final_loss loss train_loss",
    "n_tokens": "tokens train_tokens training_tokens num_tokens tokens_seen n_tokens_seen d",
    "n_params": "params parameters num_params model_size total_params n_total size n",
    "train_flops": "flops train_flop training_flop training_flops total_flops compute c",
    "budget_flops": "budget flop_budget compute_budget",
    "mean_recurrence": "mu_rec recurrence recurrences r mu",
    "n_loops": "loops num_loops t",
    "trial_id": "run run_id run_name name id",
    "seed": "random_seed rng_seed",
}


def columns(names: list[str]) -> dict[str, str]:
    """Our name -> the table's column, for those recognised; our own names and letters come first."""
    found = {n: n for n in LAW_COLUMNS if n in names}
    found |= {n: letter for letter, n in LETTERS.items() if letter in names and n not in found}
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    for ours, spellings in COMMON.items():
        here = [
            plain[s] for s in spellings.split() if s in plain and plain[s] not in found.values()
        ]
        if ours not in found and here:
            found[ours] = here[0]
    return found


def shown(source: str | Path) -> str:
    """What each column of a file was taken for, and the command that fits it.

    Raises:
        InputError: a file that is absent or cannot be read.
    """
    frame = files.read(files.find(source)).frame
    names = list(map(str, frame.columns))
    found = columns(names)
    ours = {column: name for name, column in found.items()}
    lines = []
    for name in names:
        values = frame[name].dropna()
        example = "" if values.empty else f"like {str(values.iloc[0])[:24]}"
        meant = ours.get(name)
        word = (
            "-" if meant is None else f"{LAW_COLUMNS[meant][0]} ({meant}, {LAW_COLUMNS[meant][1]})"
        )
        lines.append((name, example, word))
    width = [max(len(line[i]) for line in lines) for i in (0, 1)]
    text = [f"  {a:<{width[0]}}  {b:<{width[1]}}  {c}" for a, b, c in lines]
    return "\n".join([*text, "", _next(str(source), found)])


def _next(source: str, found: dict[str, str]) -> str:
    """The command that follows, or what is still missing for one."""
    have = set(found)
    if "val_loss" not in have:
        return "no loss is recognised: map it with --columns loss=COLUMN"
    sized = "n_params" in have and {"n_tokens", "train_flops"} & have
    law = (
        "recurrence"
        if {"budget_flops", "mean_recurrence", "n_tokens"} <= have
        else "test-time" if {"n_loops", "trial_id"} <= have
        else "chinchilla" if sized
        else "data-only" if "n_tokens" in have
        else "params-only" if "n_params" in have
        else "frontier" if "train_flops" in have
        else ""
    )  # fmt: skip
    if not law:
        return "no parameters, tokens, FLOPs or loops are recognised: map them with --columns N=COLUMN,D=COLUMN"
    return f"parcae fit {shlex.quote(source)} --law {law} {written(found)}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
