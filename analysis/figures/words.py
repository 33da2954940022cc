"""What axes, ticks and legends call a quantity: the papers' letters, mu as a Greek one, the unit once."""

from __future__ import annotations

import re

from analysis.figures.drawing import MU
from analysis.table.columns import info
from analysis.table.table import Table

_LABELS = {
    "mean_recurrence": f"mean recurrence {MU} (loops)",
    "n_tokens": "training tokens D",
    "n_params": "parameters N",
    "n_params_unrolled": f"unrolled parameters N({MU})",
    "val_loss": "validation loss (nats per token)",
    "train_flops": "training compute C (FLOPs)",
    "budget_flops": "training budget C (FLOPs)",
    "n_loops": "loops at evaluation T",
}
_GREEK = {
    "alpha": "\u03b1",
    "beta": "\u03b2",
    "gamma": "\u03b3",
    "phi": "\u03c6",
    "mu": MU,
    "delta": "\u03b4",
}


def label(column: str, table: Table | None = None) -> str:
    """An axis label; a file's own column keeps its name, and x and y are what the table calls them."""
    called = column if table is None else table.called(column)
    return _LABELS.get(column, called.replace("_", " "))


def letter(column: str) -> str:
    """Of a legend: N, D, \u03bc, T."""
    found = info(column)[0]
    return {"mu": MU, "N_mu": f"N({MU})"}.get(found, found)


def parameter(name: str) -> str:
    """A parameter as papers print it: gamma_mu as \u03b3_\u03bc."""
    return "_".join(_GREEK.get(part, part) for part in name.split("_"))


def formula(text: str) -> str:
    """A law's formula with mu and the exponents in Greek."""
    return re.sub(r"[A-Za-z]+", lambda m: _GREEK.get(m[0], m[0]), text)
