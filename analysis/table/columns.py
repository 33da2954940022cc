"""The quantities that laws know, and how a file's own columns are taken for them.

N="Model Size",C="Training FLOP",loss=loss      names or letters; the quotes are optional
D=tokens_b*1e9,C=10**log10_C                    a factor or a base converts
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analysis.errors import InputError, nearest
from analysis.table import numbers
from analysis.table.files import Raw

if TYPE_CHECKING:
    import pandas as pd

# name in our tables: (letter of the papers, unit, values must lie above)
LAW_COLUMNS: dict[str, tuple[str, str, float]] = {
    "val_loss": ("loss", "nats per token", 0.0),
    "n_tokens": ("D", "tokens", 0.0),
    "n_params": ("N", "parameters", 0.0),
    "n_params_unrolled": ("N_mu", "parameters", 0.0),
    "n_params_core": ("N_rec", "parameters", -1.0),
    "n_params_once": ("N_once", "parameters", -1.0),
    "unique_tokens": ("U", "tokens", 0.0),
    "train_flops": ("C", "FLOPs", 0.0),
    "budget_flops": ("budget", "FLOPs", 0.0),
    "mean_recurrence": ("mu", "loops", 0.0),
    "n_loops": ("T", "loops", 0.0),
    "trial_id": ("run", "-", 0.0),
    "seed": ("seed", "-", -1.0),
    "x": ("x", "-", 0.0),
    "y": ("y", "-", 0.0),
    "weight": ("weight", "-", 0.0),
}
LETTERS = {letter: name for name, (letter, _, _) in LAW_COLUMNS.items()}


def info(name: str) -> tuple[str, str, float]:
    """(letter, unit, lower bound) of a column; a file's own has its name and any value."""
    return LAW_COLUMNS.get(name, (name, "-", float("-inf")))


# What tells rows apart that a law may not mix; found by these names, the first first, case and folders aside
LABELS = {
    "tokenizer": "tokenizer tokeniser tokenizer_name",
    "vocab_size": "vocab_size vocab n_vocab",
    "data_fingerprint": "data_fingerprint dataset corpus dataset_name train_data eval_set val_set eval_dataset eval_data "
    "val_data validation_set test_set split data",
    "flops_rule": "flops_rule flop_rule flops_convention flops_method flop_method",
    "seed": "seed random_seed rng_seed replicate replica",
    "architecture": "architecture arch model_type model_family model_class family",
    "preset": "preset model_preset",
    "learning_rate": "learning_rate lr peak_lr max_lr base_lr peak_learning_rate",
    "batch_size": "batch_size global_batch_size train_batch_size",
    "mean_backprop_depth": "mean_backprop_depth mu_bwd",
}
_TEXT = ("trial_id", *LABELS)  # compared, never computed with


def parse_columns(
    text: str, option: str = "--columns", own: tuple[str, ...] = ()
) -> dict[str, str]:
    """`N="Model Size",C="Training FLOP"` as a mapping; quotes protect a comma or a factor's sign.

    `D=tokens_b*1e9` multiplies a column on its way, `C=10**log10_C` takes a logarithm back.

    Raises:
        InputError: for a part without "=", an unknown name or one given twice.
    """
    quoted: list[str] = []

    def hide(found: re.Match) -> str:
        quoted.append(found[0])
        return f"\0{len(quoted) - 1}\0"

    hidden = re.sub(r"\"[^\"]*\"|'[^']*'", hide, text)
    out: dict[str, str] = {}
    # a comma inside a column's name is not followed by NAME=
    for part in re.split(r",(?=\s*\w+\s*=)", hidden):
        name, sign, column = part.partition("=")
        column = re.sub(r"\0(\d+)\0", lambda m: quoted[int(m[1])], column)
        name, column = name.strip(), _unquoted(column)
        if not sign or not name or not column:
            raise InputError(
                f'{option}: {part.strip()!r} is not NAME=COLUMN; write it like N="Model Size",loss=loss.'
            )
        name = canonical(name, option, own)
        if name in out:
            raise InputError(f"{option}: {info(name)[0]} is given twice; keep one.")
        out[name] = column
    return out


def _unquoted(column: str) -> str:
    column = column.strip()
    whole = re.fullmatch(r"\"([^\"]*)\"|'([^']*)'", column)
    return column if not whole else whole[1] or whole[2] or ""


def written(columns: dict[str, str], **changed: str) -> str:
    """A mapping as `--columns` takes it, with some of it changed: advice that can be pasted."""
    parts = [
        f"{LAW_COLUMNS[n][0] if n in LAW_COLUMNS else n}={c if c.isidentifier() else _protected(c)}"
        for n, c in (columns | changed).items()
    ]
    text = ",".join(parts)
    return f"--columns '{text}'" if re.search(r"[^\w=,.]", text) else f"--columns {text}"


def _protected(column: str) -> str:
    return f'"{column}"' if re.search(r"[,=]", column) else column


def mapped(raw: Raw, columns: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The named columns under our names, and beside them the labels that the file has; and the file's own
    column behind each.
    """
    import pandas as pd

    frame, names = raw.frame, tuple(raw.frame.columns)
    picked, own = {}, {}
    for name, expression in columns.items():
        column, convert = conversion(expression, names)
        if column not in names:
            raise InputError(
                f"{raw.where}: has no column {column!r}{nearest(column, names)}. It has {', '.join(names)}."
            )
        own[name] = column
        values = frame[column]
        if name not in _TEXT:
            values = _converted(numbers.parse(values, _comma(name, raw)), convert)
        picked[name] = values
    for name, column in _labels(frame).items():
        if name not in picked and column not in own.values():
            own[name], picked[name] = column, frame[column]
    return pd.DataFrame(picked, index=frame.index), own  # rows, even where no column is


def _comma(name: str, raw: Raw) -> str | None:
    """What 3,245 means in a column whose other cells leave it open."""
    if raw.decimal_comma or name == "val_loss":  # 3245 nats per token do not exist
        return "decimal"
    return None if name in ("x", "y", "weight") else "thousands"


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """Columns that say what may not be mixed: `dataset`, `config/tokenizer`, `Seed`."""
    last: dict[str, str] = {}
    for column in frame.columns:
        if frame[column].notna().any():
            word = re.split(r"[/.]", column)[-1].strip().lower()
            last.setdefault(re.sub(r"[ -]", "_", word), column)
    for word in ("data", "split"):  # may as well hold how many tokens, or which share
        if word in last and numbers.floats(frame[last[word]]).notna().any():
            del last[word]
    found = {n: [last[s] for s in words.split() if s in last] for n, words in LABELS.items()}
    return {name: columns[0] for name, columns in found.items() if columns}


def conversion(expression: str, names: tuple[str, ...]):
    """`params_m*1e6` or `10**log10_C` as (column, function or None); a column of that very name comes first."""
    if expression in names:
        return expression, None
    if found := re.fullmatch(r"(10|2|e)(?:\*\*|\^)\s*(.+)", expression):
        base = 2.718281828459045 if found[1] == "e" else float(found[1])
        return _unquoted(found[2]), lambda values: base**values
    column, _, factor = expression.rpartition("*")
    number = numbers.one(factor) if column else None
    if number is None:
        return expression, None
    return _unquoted(column), lambda values: values * number


def _converted(values: pd.Series, convert) -> pd.Series:
    """A conversion of the cells that are numbers; the others stay, for a message to show."""
    if convert is None:
        return values
    read = numbers.floats(values)
    done = convert(read)
    return done if values.dtype.kind == "f" else done.astype(object).where(read.notna(), values)


def canonical(name: str, option: str = "--columns", own: tuple[str, ...] = ()) -> str:
    """Our name of a quantity given by name or letter; a column of the file's `own` keeps its name."""
    if name in own:
        return name
    name = LETTERS.get(name, name)
    if name not in LAW_COLUMNS and name not in LABELS:
        known = tuple(own) + tuple(LAW_COLUMNS) + tuple(LETTERS)
        raise InputError(
            f"{option}: {name!r} is not a quantity a law knows{nearest(name, known)}. Known: "
            + "".join(f"{n}, " for n in own if n not in LAW_COLUMNS)
            + ", ".join(f"{letter} ({name})" for name, (letter, _, _) in LAW_COLUMNS.items())
            + "."
        )
    return name
