"""Which column of a stranger's table is which, by names that are common; and the command that follows.

Our own names and the papers' letters come first. Of the common names a tier is taken as a whole: two
columns of one tier are ambiguous unless they hold the same cells, and then neither is taken.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.table import numbers
from analysis.table.columns import LAW_COLUMNS, LETTERS, conversion, info, written

if TYPE_CHECKING:
    import pandas as pd

# our name -> tiers, each of names as `_plain` leaves them; the first tier that a table has is taken
COMMON: dict[str, tuple[str, ...]] = {
    "val_loss": (
        "val_loss validation_loss valid_loss eval_loss test_loss heldout_loss held_out_loss dev_loss "
        "loss_val loss_valid loss_eval loss_test",
        "loss lm_loss nll cross_entropy ce_loss xent",
        "train_loss training_loss",
    ),
    "n_tokens": (
        "n_tokens tokens d_tokens train_tokens training_tokens num_tokens total_tokens tokens_seen tokens_trained "
        "n_train_tokens n_tokens_seen num_tokens_seen num_input_tokens_seen token_count consumed_tokens dataset_tokens",
        "d",
    ),
    "n_params": (
        "n_params params parameters parameter num_params n_parameters num_parameters total_params total_parameters "
        "params_total n_total parameter_count param_count model_params model_parameters model_size",
        "size n",
        "non_embedding_params params_non_embedding n_non_embedding_params non_embedding_parameters n_non_embedding "
        "n_non_emb non_emb_params active_params",
    ),
    "train_flops": (
        "train_flops training_flops flops total_train_flops total_training_flops train_flop training_flop flop total_flops total_flop "
        "achieved_flops compute train_compute training_compute total_compute total_flos",
        "c",
    ),
    "budget_flops": (
        "budget_flops budget flop_budget flops_budget compute_budget target_flops isoflop_budget",
    ),
    "mean_recurrence": (
        "mean_recurrence mu_rec recurrence recurrences num_recurrences r_train train_loops "
        "train_recurrence",
        "r mu",
    ),
    "n_loops": ("n_loops loops num_loops eval_loops test_loops", "t"),
    "unique_tokens": ("unique_tokens n_unique_tokens unique_train_tokens",),
    "trial_id": ("run", "run_id", "run_name trial"),
    "x": (),
    "y": (),
}
# a run's name where rows are a curve of it; else it may be a family's, or a size's
_OF_CURVES = ("name", "id", "experiment", "experiment_name", "exp", "exp_name", "display_name")
_OF_MODELS = ("model", "model_name", "model_id")  # likewise, where rows are checkpoints
MIN_LOOPS = 4  # of a curve over them: three parameters, and one observation to judge them by
_CHECKPOINTS = 10  # rows of a name, at least, that make it a run's with a history
_AT_LEAST = 3  # where a size has several names, which then are no names of sizes
_LARGEST = {"n_params": 1e14, "n_tokens": 1e17}  # nobody has trained more
_LOGARITHMS = {"log10": "10", "lg": "10", "log2": "2", "ln": "e"}
_PETAFLOP_DAYS = re.compile(r"(?:\w+_)?(?:pf|pfs|petaflops?|pflops?)(?:_s)?_days?")  # 8.64e19 FLOPs


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the names of a table's columns say."""

    columns: dict[str, str]  # our name -> the table's column, or a conversion of it
    by_name: tuple[str, ...] = ()  # of those, taken for a common name and not for ours
    unsure: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our name -> several columns


def recognised(frame: pd.DataFrame) -> Recognised:
    """Which column is which, as far as the names say so without doubt."""
    names = list(map(str, frame.columns))
    own = {n: n for n in LAW_COLUMNS if n in names}
    own |= {n: letter for letter, n in LETTERS.items() if letter in names and n not in own}
    held_out = COMMON["val_loss"][0].split()
    if own.get("val_loss") == "loss" and any(_plain(n) in held_out for n in names):
        del own["val_loss"]  # beside a held-out one, `loss` is that of training
    found = dict(own)
    unsure: dict[str, tuple[str, ...]] = {}
    for ours, tiers in COMMON.items():
        if ours in found:
            continue
        for candidates in _candidates(ours, tiers, names):
            here = [c for c in candidates if c not in found.values()]
            if not here:
                continue
            if len(here) == 1 and _too_large(frame, ours, here[0]):
                unsure[ours] = (conversion(here[0], tuple(names))[0], here[0])
            elif len(here) == 1 or _same_cells(frame, here):
                found[ours] = here[0]
            else:
                unsure[ours] = tuple(here)
            break
    for known in (_OF_CURVES, _OF_MODELS):
        named = [n for n in names if _plain(n) in known and n not in found.values()]
        over_loops = "n_loops" in found and known is _OF_CURVES
        if "trial_id" in found or len(named) != 1:
            continue
        if over_loops or _is_history(frame, named[0], found):
            found["trial_id"] = named[0]
    return Recognised(found, tuple(n for n in found if n not in own), unsure)


def _is_history(frame: pd.DataFrame, name: str, found: dict[str, str]) -> bool:
    """Whether rows are checkpoints: many to a name, of one size, each at other tokens.

    Of fewer rows to a name, where each size has one, the name may be the size's and each row a run: of such
    the residuals decide (`analysis.fitting.structure`).
    """
    names = tuple(map(str, frame.columns))
    size, tokens = (conversion(found.get(n, ""), names)[0] for n in ("n_params", "n_tokens"))
    if size not in frame or tokens not in frame or frame[name].isna().any():
        return False
    groups = frame.groupby(name)
    several = frame.groupby(size)[name].nunique().max() > 1
    many = len(frame) >= (_AT_LEAST if several else _CHECKPOINTS) * groups.ngroups
    return bool(
        many and (groups[size].nunique() == 1).all() and not frame.duplicated([name, tokens]).any()
    )


def _candidates(ours: str, tiers: tuple[str, ...], names: list[str]):
    """The table's columns for a name of ours, tier by tier; a folder before a name (eval/loss) may count."""
    plain = {name: _plain(name) for name in names}
    last = {name: _plain(re.split(r"[/.]", name)[-1]) for name in names}
    for tier in tiers:
        known = tier.split()
        yield [n for n in names if plain[n] in known]
        if ours != "val_loss" or len(known) > 1:  # train/loss is no loss without a folder
            named = [n for n in names if last[n] in known]
            yield [n for n in named if ours != "val_loss" or not n.lower().startswith("train")]
    known = " ".join(tiers).split()
    if ours in ("n_params", "n_tokens"):
        yield [
            f"{name}*{numbers.SCALES[unit]}"
            for name, text in plain.items()
            for base, _, unit in [text.rpartition("_")]
            if base in known and unit in numbers.SCALES
        ]
    if ours in ("n_params", "n_tokens", "train_flops"):
        yield [
            f"{_LOGARITHMS[base]}**{name}"
            for name, text in plain.items()
            for base, _, what in [text.partition("_")]
            if base in _LOGARITHMS and what in known
        ]
        yield [  # of a base that its name does not say: to be asked for
            f"{base}**{name}"
            for name, text in plain.items()
            for base in ("10", "e")
            if text.startswith("log_") and text.removeprefix("log_") in known
        ]
    if ours == "train_flops":
        yield [
            f"{name}*{numbers.FLOP_SCALES[scaled[1]]}"
            for name, text in plain.items()
            if (scaled := re.fullmatch(r"(?:\w+_)?([gtpezy])flops?", text))
        ]
        yield [f"{n}*8.64e19" for n, text in plain.items() if _PETAFLOP_DAYS.fullmatch(text)]


def _too_large(frame: pd.DataFrame, ours: str, expression: str) -> bool:
    """Whether a name's unit cannot be: `params (M)` with 31000000 in its cells."""
    column, convert = conversion(expression, tuple(map(str, frame.columns)))
    if convert is None or ours not in _LARGEST:
        return False
    values = numbers.floats(numbers.parse(frame[column], "thousands"))
    return bool(convert(values).max() > _LARGEST[ours])


def _same_cells(frame: pd.DataFrame, names: list[str]) -> bool:
    """Whether columns hold the same, so that it does not matter which is taken."""
    return all(n in frame and frame[n].equals(frame[names[0]]) for n in names)


def law_of(values: Mapping[str, pd.Series]) -> str:
    """The law that a table looks like, by its columns under our names; "" where none follows."""

    def several(name: str, least: int = 2) -> bool:
        return name in values and values[name].nunique() >= least

    if _is_curve(values) and not (several("budget_flops", 3) and several("mean_recurrence", 4)):
        return "test-time"
    if "x" in values and "y" in values and "val_loss" not in values:
        return "power"
    if "val_loss" not in values:
        return ""
    if several("mean_recurrence") and several("budget_flops") and "n_tokens" in values:
        return "recurrence"
    if several("mean_recurrence") and ("n_params_unrolled" in values or "n_params_core" in values):
        return "training"
    spent = several("n_tokens") or ("n_tokens" not in values and several("train_flops"))
    if several("n_params") and spent:
        rest = "repeated" if has_repeats(values) else "chinchilla"
        return "isoflop" if has_isoflops(values) else rest
    for name, law in (("n_tokens", "data-only"), ("n_params", "params-only")):
        # a value stands for a run, and not for a group that something else tells apart
        if several(name) and len(values[name]) <= 2 * values[name].nunique():
            return law
    if several("train_flops"):
        return "frontier"
    return "accuracy" if "y" in values and several("val_loss") else ""


def _is_curve(values: Mapping[str, pd.Series]) -> bool:
    """Whether a run is evaluated at as many numbers of loops as a curve over them needs."""
    loops, runs = values.get("n_loops"), values.get("trial_id")
    if loops is None:
        return False
    most = loops.nunique() if runs is None else loops.groupby(runs).nunique().max()
    return bool(most >= MIN_LOOPS)


def has_isoflops(values: Mapping[str, pd.Series]) -> bool:
    """Whether there are budgets, three of them and four runs in each, over sizes."""
    if not {"budget_flops", "n_params"} <= set(values):
        return False
    budgets = values["budget_flops"]
    return len(budgets) >= 4 * budgets.nunique() >= 12


def has_repeats(values: Mapping[str, pd.Series]) -> bool:
    """Whether runs saw more tokens than there are: those that came again are worth less."""
    if not {"n_params", "n_tokens", "unique_tokens"} <= set(values):
        return False
    seen, unique = (numbers.floats(values[n]) for n in ("n_tokens", "unique_tokens"))
    return bool((seen > unique).any())


def shown(source: str | Path, frame: pd.DataFrame, *, own: bool) -> str:
    """What each column of a source was taken for, and the command that fits it.

    Args:
        own: whether the columns have names of their own, which the command has to map.
    """
    names = list(map(str, frame.columns))
    found = recognised(frame)
    ours = {column: name for name, column in found.columns.items()}
    ours |= {conversion(c, tuple(names))[0]: n for c, n in ours.items() if c not in names}
    maybe = {
        conversion(c, tuple(names))[0]: n for n, several in found.unsure.items() for c in several
    }
    lines = []
    for name in names:
        values = frame[name].dropna()
        example = "" if values.empty else f"like {str(values.iloc[0])[:24]}"
        meant, word = ours.get(name), "-"
        if meant is not None:
            letter, unit, _ = info(meant)
            word = f"{letter} ({meant}, {unit})"
            if found.columns[meant] != name:
                word += f" as {found.columns[meant]}"
        elif name in maybe:
            word = f"{info(maybe[name])[0]}? (one of {len(found.unsure[maybe[name]])})"
        lines.append((name, example, word))
    width = [max(len(line[i]) for line in lines) for i in (0, 1)]
    text = [f"  {a:<{width[0]}}  {b:<{width[1]}}  {c}" for a, b, c in lines]
    return "\n".join([*text, "", _next(str(source), found, frame, own)])


def _next(source: str, found: Recognised, frame: pd.DataFrame, own: bool) -> str:
    """The command that follows, or what is still missing for one."""
    names = tuple(map(str, frame.columns))
    values = {n: frame[conversion(c, names)[0]] for n, c in found.columns.items()}
    for n in set(values) - {"trial_id"}:
        values[n] = numbers.floats(numbers.parse(values[n], "thousands"))
    law = law_of(values)
    choice = {n: columns[0] for n, columns in found.unsure.items()}
    if not law and "val_loss" not in {**values, **choice}:
        return "no loss is recognised: map it with --columns loss=COLUMN"
    if choice:
        unsure = [f"{info(n)[0]} may be {' or '.join(c)}" for n, c in found.unsure.items()]
        several = "; ".join(unsure)
        law = law_of({**values, **{n: frame[c] for n, c in choice.items() if c in frame}}) or law
        tail = f"--law {law} " if law else ""
        return f"{several}. Choose, like\nparcae fit {shlex.quote(source)} {tail}{written(found.columns | choice)}"
    if not law:
        return "no parameters, tokens, FLOPs or loops are recognised: map them with --columns N=COLUMN,D=COLUMN"
    mapping = f" {written(found.columns)}" if own else ""
    return f"parcae fit {shlex.quote(source)} --law {law}{mapping}"


def _plain(name: str) -> str:
    """Lower case, words joined by _; `final` says when and not what."""
    name = re.sub(r"#\d+$", "", name.strip())  # a repeated name
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    words = re.sub(r"^final_|_final$|_nats$|_nats_per_token$", "", words)
    return re.sub(r"(?<=compute)_flops?$|(?<=tokens)_tokens$", "", words)  # its unit once more
