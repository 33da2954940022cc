"""The quantities that laws know, and how a file's own columns are taken for them.

N="Model Size",C="Training FLOP",loss=loss      names or letters; the quotes are optional
D=tokens_b*1e9                                  a factor converts
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.errors import InputError, nearest
from analysis.table import units

if TYPE_CHECKING:
    import pandas as pd

# name in our tables: (letter of the papers, unit, smallest allowed value)
LAW_COLUMNS: dict[str, tuple[str, str, float]] = {
    "val_loss": ("loss", "nats per token", 0.0),
    "n_tokens": ("D", "tokens", 0.0),
    "n_params": ("N", "parameters", 0.0),
    "n_params_unrolled": ("N_mu", "parameters", 0.0),
    "n_params_core": ("N_rec", "parameters", -1.0),
    "n_params_once": ("N_once", "parameters", 0.0),
    "train_flops": ("C", "FLOPs", 0.0),
    "budget_flops": ("budget", "FLOPs", 0.0),
    "mean_recurrence": ("mu", "loops", 0.0),
    "n_loops": ("T", "loops", 0.0),
    "trial_id": ("run", "-", 0.0),
    "x": ("x", "-", 0.0),
    "y": ("y", "-", 0.0),
    "weight": ("weight", "-", 0.0),
}
_LETTERS = {letter: name for name, (letter, _, _) in LAW_COLUMNS.items()}


def parse_columns(text: str, option: str = "--columns") -> dict[str, str]:
    """`N="Model Size",C="Training FLOP"` as a mapping; the quotes are optional.

    `D=tokens_b*1e9` multiplies a column on its way.

    Raises:
        InputError: for a part without "=" or an unknown name.
    """
    out = {}
    for part in text.split(","):
        name, sign, column = part.partition("=")
        name, column = name.strip(), column.strip().strip("\"'")
        if not sign or not name or not column:
            raise InputError(
                f'{option}: {part.strip()!r} is not NAME=COLUMN; write it like N="Model Size",loss=loss.'
            )
        out[canonical(name, option)] = column
    return out


def own_names(frame: pd.DataFrame, where: str) -> dict[str, str]:
    """Columns that already carry our names, or the papers' letters."""
    found = {n: n for n in LAW_COLUMNS if n in frame.columns}
    found |= {n: s for s, n in _LETTERS.items() if s in frame.columns and n not in found}
    if not found:
        raise InputError(
            f"{where}: has columns {', '.join(map(str, frame.columns))}; none is a name of ours. "
            'Say which is which with --columns, like N="Model Size",C="Training FLOP",loss=loss.'
        )
    return found


def mapped(
    frame: pd.DataFrame, columns: dict[str, str], where: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The named columns under our names, and notes on their units.

    Raises:
        InputError: for a column that is absent, an unknown quantity, or a loss in another unit.
    """
    import pandas as pd

    picked, plain = {}, {}
    for name, column in columns.items():
        name = canonical(name)
        column, factor = _factor(column, frame)
        if column not in frame.columns:
            raise InputError(
                f"{where}: has no column {column!r}{nearest(column, tuple(map(str, frame.columns)))}. "
                f"It has {', '.join(map(str, frame.columns))}."
            )
        values = frame[column]
        plain[name] = column
        picked[name] = (values if factor == 1 else values * factor).to_numpy()
    out = pd.DataFrame(picked)
    return out, units.check_mapped(out, plain, where)


def _factor(column: str, frame: pd.DataFrame) -> tuple[str, float]:
    """`params_m*1e6` as column and factor; a column of that very name comes first."""
    name, star, factor = column.rpartition("*")
    if column in frame.columns or not star:
        return column, 1.0
    try:
        return name.strip().strip("\"'"), float(factor)
    except ValueError:
        return column, 1.0


def canonical(name: str, option: str = "--columns") -> str:
    """Our name of a quantity given by name or letter.

    Raises:
        InputError: for an unknown one, with the nearest.
    """
    name = _LETTERS.get(name, name)
    if name not in LAW_COLUMNS:
        known = tuple(LAW_COLUMNS) + tuple(_LETTERS)
        raise InputError(
            f"{option}: {name!r} is not a quantity a law knows{nearest(name, known)}. Known: "
            + ", ".join(f"{letter} ({name})" for name, (letter, _, _) in LAW_COLUMNS.items())
            + "."
        )
    return name
