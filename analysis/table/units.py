"""Whether numbers can be in the unit that a law takes: nats per token, tokens, parameters, FLOPs.

A table says nothing of its units, and a fit runs on any. What can be seen is refused where it is
certain (a column named after bits, a loss above what any tokenizer gives) and noted where it is only
likely (parameters in millions). `--columns N=params_m*1e6` converts.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.table import numbers
from analysis.table.columns import written

if TYPE_CHECKING:
    import pandas as pd

# A loss of 25 nats per token would be worse than guessing among 7e10 tokens
MAX_NATS = 25.0
# Guessing among 262,144 tokens costs 12.5: half the runs of a table have learned more than that.
# Half of them are rarely above 6, and those that diverged lie apart from the others; where neither holds
# and some lie above `MAX_NATS`, they are perplexities
_GUESSING, _HIGH, _GAP = 12.5, 6.0, 2.0
# column: (smallest value that is likely in its unit, the unit, what smaller numbers may be in)
_SMALLEST = {
    "n_tokens": (1e4, "tokens", "millions or billions"),
    "n_params": (1e3, "parameters", "millions or billions"),
    "n_params_unrolled": (1e3, "parameters", "millions or billions"),
    "train_flops": (1e9, "FLOPs", "petaFLOPs, or their logarithm"),
    "budget_flops": (1e9, "FLOPs", "petaFLOPs, or their logarithm"),
}
UNITS = "nats, bits, ppl (perplexity), or bpb=BYTES (bits per byte, BYTES per token: a number or a column)"
_BITS = re.compile(r"(^|[^a-z])(bpb|bits?|bpc)([^a-z]|$)", re.IGNORECASE)
_PERPLEXITY = re.compile(r"(^|[^a-z])(ppl|perplexity)([^a-z]|$)", re.IGNORECASE)
_LOGARITHM = re.compile(r"(?:^|[^a-z])(log10|log2|log|lg|ln)(?:[^a-z]|$)", re.IGNORECASE)
_BASES = {"log10": "10", "lg": "10", "log2": "2", "ln": "e", "log": "10"}


def to_nats(frame: pd.DataFrame, raw: pd.DataFrame, unit: str, where: str) -> tuple[str, ...]:
    """The losses of a table in nats per token, changed in place; a note says from what.

    Args:
        raw: the same rows under the file's own names, for a column of bytes per token.
    """
    kind, _, bytes_per_token = unit.strip().partition("=")
    if "val_loss" not in frame or kind == "nats":
        if kind not in ("nats", "bits", "bpb", "ppl"):
            raise InputError(f"--unit {unit!r} is unknown; it must be {UNITS}.")
        return ()
    loss = numbers.floats(frame.val_loss)
    if kind == "bits":
        nats, words = loss * math.log(2), "bits per token"
    elif kind == "ppl":
        nats, words = loss.where(loss > 0).transform("log"), "perplexities"
    elif kind == "bpb":
        nats = loss * math.log(2) * _bytes_per_token(bytes_per_token, raw, where)
        words = f"bits per byte at {bytes_per_token or 'bytes_per_token'} bytes per token"
    else:
        raise InputError(f"--unit {unit!r} is unknown; it must be {UNITS}.")
    frame["val_loss"] = nats.where(loss.notna(), frame.val_loss) if loss.isna().any() else nats
    return (f"losses are read as {words} and fitted in nats per token",)


def _bytes_per_token(text: str, raw: pd.DataFrame, where: str):
    name = text or "bytes_per_token"
    if name in raw:
        return numbers.floats(numbers.parse(raw[name]))
    number = numbers.one(name)
    if number is None or not 0 < number < 64:
        raise InputError(
            f"{where}: --unit bpb needs the bytes of a token, a number or a column of the file, like "
            "--unit bpb=4.2: nats per token are bits per byte * ln 2 * bytes per token."
        )
    return number


def _said(column: str) -> str:
    """The `--unit` of losses that a column's name says it holds; "" where it says none."""
    if _BITS.search(column):
        return "bpb=BYTES_PER_TOKEN" if re.search("bpb|byte", column, re.IGNORECASE) else "bits"
    return "ppl" if _PERPLEXITY.search(column) else ""


def named(names) -> tuple[str, str] | None:
    """The one column that its name says to hold losses in another unit, and the `--unit` for it."""
    said = {n: unit for n in names if (unit := _said(n))}
    bits = [n for n, unit in said.items() if unit != "ppl"]
    held_out = [n for n in (bits or said) if "train" not in n.lower()]
    return (held_out[0], said[held_out[0]]) if len(held_out) == 1 else None


def check_mapped(
    frame: pd.DataFrame, columns: dict[str, str], where: str, unit: str | None = None
) -> tuple[str, ...]:
    """Notes on the mapped columns of a file that is not a records table.

    Args:
        columns: our name -> the file's column, or a conversion of it.
        unit: of the losses, where it was given; as nats, whatever their column is called.
    """
    column = columns.get("val_loss", "")
    said = _said(column)
    if said and unit is None:
        what, cure = (
            "a perplexity" if said == "ppl" else "bits",
            (named([column]) or ("", "nats"))[1],
        )
        raise InputError(
            f"{where}: column {column!r} for the loss says it holds {what}; the laws take nats "
            f"per token. Convert it with --unit {cure}, or say --unit nats if its name misleads."
        )
    may_be = {"ppl": ("ppl",), "bits": ("bits", "bpb")}.get(said, ("bpb",))
    if said and (unit or "").partition("=")[0].strip() not in ("nats", *may_be):
        of_bytes = " (1 where a token is a byte)" if said.startswith("bpb") else ""
        raise InputError(
            f"{where}: --unit {unit} is not what column {column!r} for the loss says it holds; convert it with "
            f"--unit {said}{of_bytes}, or say --unit nats if its name misleads."
        )
    if "n_loops" not in frame:  # curves over loops may explode, which laws of trained models refuse
        refuse_diverged(frame, where)
    notes = []
    losses = numbers.floats(frame.val_loss) if unit is None and "val_loss" in frame else None
    if losses is not None and "n_loops" not in frame and losses.max() > _GUESSING:
        notes.append(
            f"the largest loss is {losses.max():.4g}, above what guessing costs ({_GUESSING:g} nats among "
            "262,144 tokens): if losses are perplexities, add --unit ppl"
        )
    for name, (least, unit, others) in _SMALLEST.items():
        if name not in frame:
            continue
        largest = numbers.floats(frame[name]).max()
        if not largest < least:
            continue
        own = columns.get(name, name)
        if found := _LOGARITHM.search(own):
            raise InputError(
                f"{where}: column {own!r} says it holds a logarithm (at most {largest:.4g}); {name} is "
                f"in {unit}. Take it back with "
                f"{written(columns, **{name: f'{_BASES[found[1].lower()]}**{own}'})}."
            )
        notes.append(
            f"{name} is at most {largest:.4g}: is it in {others}? The fit holds in any unit, but "
            f"D = C / (6 N) and predictions take {unit}; convert with "
            f"{written(columns, **{name: f'{own}*FACTOR'})}"
        )
    return tuple(notes)


def refuse_other_flops(flops: pd.Series, columns: dict[str, str], where: str) -> None:
    """FLOPs that tokens are to be computed from; another unit would change them unseen."""
    largest, least = numbers.floats(flops).max(), _SMALLEST["train_flops"][0]
    if largest < least:
        own = columns.get("train_flops", "train_flops")
        raise InputError(
            f"{where}: train_flops is at most {largest:.4g}, and D = C / (6 N) needs FLOPs. Convert EFLOPs "
            f"with {written(columns, train_flops=f'{own}*1e18')}, PFLOPs with {own}*1e15 there, a logarithm "
            f"with 10**{own}; or map the tokens, D=COLUMN."
        )


def refuse_diverged(frame: pd.DataFrame, where: str) -> None:
    """Losses that are no nats per token: a perplexity in every row, or a run that diverged in some."""
    if "val_loss" not in frame:
        return
    loss = numbers.floats(frame.val_loss)
    loss = loss[loss < float("inf")]  # an infinite one is refused by the laws
    high = loss > MAX_NATS
    crowded = loss[high].min() < _GAP * loss[~high].max() and loss.median() > _HIGH
    if crowded or loss.median() > _GUESSING:
        raise InputError(
            f"{where}: losses go from {loss.min():.4g} to {loss.max():.4g}, as perplexities do and nats per "
            "token do not. Add --unit ppl."
        )
    if high.any():
        raise InputError(
            f"{where}: the largest loss is {loss.max():.4g}; nats per token never exceed {MAX_NATS:g}. "
            f"{int(high.sum())} of {len(loss)} rows are that high, as runs that diverged are. Leave them out "
            f'with --where "val_loss<{MAX_NATS:g}".'
        )


def check_records(frame: pd.DataFrame, where: str) -> None:
    """Nats per token and bits per byte of one tokenizer and text give one number of bytes per token."""
    both = frame[frame.val_loss.notna() & frame.val_bpb.notna()]
    if not len(both):
        return
    ratio = both.val_loss / math.log(2) / both.val_bpb
    same = ["tokenizer", "data_fingerprint", "val_tokens", "context"]
    spread = ratio.groupby([both[c] for c in same]).agg(lambda r: r.max() / r.min())
    wrong = spread[spread > 1.001]
    if len(wrong) or not 0.2 < ratio.median() < 64:
        raise InputError(
            f"{where}: val_loss and val_bpb give {ratio.min():.3g} to {ratio.max():.3g} bytes per "
            "token on one text; nats per token = bits per byte * ln 2 * bytes per token must hold "
            "with one number. One of the two columns is in another unit; correct it."
        )
