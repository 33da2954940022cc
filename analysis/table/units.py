"""Whether numbers can be in the unit that a law takes: nats per token, tokens, parameters, FLOPs.

A table says nothing of its units, and a fit runs on any. What can be seen is refused where it is
certain (a column named after bits, a loss above what any tokenizer gives) and noted where it is only
likely (parameters in millions). `--columns N=params_m*1e6` converts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

# A loss of 25 nats per token would be worse than guessing among 7e10 tokens
MAX_NATS = 25.0
# column: (smallest value that is likely in its unit, the unit, what smaller numbers may be in)
_SMALLEST = {
    "n_tokens": (1e4, "tokens", "millions or billions"),
    "n_params": (1e3, "parameters", "millions or billions"),
    "n_params_unrolled": (1e3, "parameters", "millions or billions"),
    "train_flops": (1e9, "FLOPs", "petaFLOPs, or their logarithm"),
    "budget_flops": (1e9, "FLOPs", "petaFLOPs, or their logarithm"),
}
_BITS = re.compile(r"(^|[^a-z])(bpb|bits?|bpc)([^a-z]|$)", re.IGNORECASE)
_PERPLEXITY = re.compile(r"(^|[^a-z])(ppl|perplexity)([^a-z]|$)", re.IGNORECASE)


def check_mapped(frame: pd.DataFrame, columns: dict[str, str], where: str) -> tuple[str, ...]:
    """Notes on the mapped columns of a file that is not a records table.

    Args:
        columns: our name -> the file's column, without its factor.

    Raises:
        InputError: for a loss that is certainly not in nats per token.
    """
    column = columns.get("val_loss", "")
    for pattern, what, cure in (
        (_BITS, "bits", "nats per token are bits per byte * ln 2 * bytes per token"),
        (_PERPLEXITY, "a perplexity", "nats per token are its natural logarithm"),
    ):
        if pattern.search(column):
            raise InputError(
                f"{where}: column {column!r} for the loss says it holds {what}; the laws take nats "
                f"per token ({cure}). Map another column, or rename this one if the name misleads."
            )
    loss = frame.get("val_loss")
    if loss is not None and loss.dtype.kind in "fiu":
        largest = loss[loss < float("inf")].max()  # an infinite one is refused by the laws
        if largest > MAX_NATS:
            raise InputError(
                f"{where}: the largest loss is {largest:.4g}; nats per token never exceed {MAX_NATS:g}. "
                "Is it a perplexity? Store its natural logarithm."
            )
    return tuple(
        f"{name} is at most {frame[name].max():.4g}: is it in {others}? The fit holds in any unit, "
        f"but D = C / (6 N) and predictions take {unit}; convert with --columns NAME=COLUMN*FACTOR"
        for name, (least, unit, others) in _SMALLEST.items()
        if name in frame and frame[name].dtype.kind in "fiu" and frame[name].max() < least
    )


def check_records(frame: pd.DataFrame, where: str) -> None:
    """Nats per token and bits per byte of one tokenizer and text give one number of bytes per token.

    Raises:
        InputError: when they do not: one of the two is in another unit.
    """
    import numpy as np

    both = frame[frame.val_loss.notna() & frame.val_bpb.notna()]
    if not len(both):
        return
    ratio = both.val_loss / np.log(2) / both.val_bpb
    same = ["tokenizer", "data_fingerprint", "val_tokens", "context"]
    spread = ratio.groupby([both[c] for c in same]).agg(lambda r: r.max() / r.min())
    wrong = spread[spread > 1.001]
    if len(wrong) or not 0.2 < ratio.median() < 64:
        raise InputError(
            f"{where}: val_loss and val_bpb give {ratio.min():.3g} to {ratio.max():.3g} bytes per "
            "token on one text; nats per token = bits per byte * ln 2 * bytes per token must hold "
            "with one number. One of the two columns is in another unit; correct it."
        )
