"""What other tools leave behind, as one row per run and step: W&B's charts, TensorBoard, a Trainer's state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

# loss_T4, T=4, val_loss@4, loops 4: a column per number of loops
_AT_LOOPS = re.compile(
    r"(?:(?P<at>(?:\w+[_/ ])?loss)[_ ]?@|(?:(?P<named>[\w/]*loss)[_ ])?(?:T|t|n_loops|loops?)[ =_]?)(?P<T>\d+)"
)
_WIDE = 4  # columns
TRAINER_STATE = "trainer_state.json"
EVENTS = "*tfevents*"


def reshaped(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Two exports that hold no row per run are turned, with a note: TensorBoard's long one, W&B's wide one."""
    import pandas as pd

    at_loops = {c: found for c in frame.columns if (found := _AT_LOOPS.fullmatch(c))}
    if len(at_loops) >= _WIDE:
        return _by_loops(frame, at_loops)
    lower = {c.lower(): c for c in frame.columns}
    if {"tag", "step", "value"} <= set(lower):
        tag, value = lower["tag"], lower["value"]
        index = [lower[c] for c in ("run", "step") if c in lower]
        wide = frame.pivot_table(index=index, columns=tag, values=value, aggfunc="last", sort=False)
        wide = wide.rename_axis(columns=None).reset_index()
        return wide, f"a column per {tag!r}, a row per {' and '.join(index)}"
    charted = [c for c in frame.columns if {f"{c}__MIN", f"{c}__MAX"} <= set(frame.columns)]
    if not charted:
        of_runs = [c for c in frame.columns if " - " in c]
        one_metric = len({c.rpartition(" - ")[2] for c in of_runs}) == 1
        charted = of_runs if one_metric and len(of_runs) > 1 else []
    if not charted:
        return frame, ""
    spread = {f"{c}{end}" for c in charted for end in ("__MIN", "__MAX")}
    index = [c for c in frame.columns if c not in spread and c not in charted]
    parts = []
    for column in charted:
        run, _, metric = column.rpartition(" - ")
        part = frame[[*index, column]].rename(columns={column: metric}).dropna(subset=[metric])
        parts.append(part.assign(run=run))
    by = ["run", *index]
    long = pd.concat(parts).groupby(by, sort=False, dropna=False).first().reset_index()
    return long, f"a row per run and {' and '.join(index)}"


def _by_loops(frame: pd.DataFrame, columns: dict[str, re.Match]) -> tuple[pd.DataFrame, str]:
    """A row per number of loops: a metric that is alone, or alone held out, is `val_loss`; others keep their name."""
    import pandas as pd

    of = {c: found["at"] or found["named"] or "loss" for c, found in columns.items()}
    metrics = list(dict.fromkeys(of.values()))
    held_out = [m for m in metrics if "train" not in m.lower()] or metrics
    names = {m: "val_loss" if held_out == [m] else m for m in metrics}
    # a loss per run beside one per number of loops is not the loss of a row
    whole = {c: f"{c} (of the run)" for c in frame.columns if c in names.values()}
    frame = frame.rename(columns=whole)
    rest = [c for c in frame.columns if c not in columns]
    parts = []
    for loops in dict.fromkeys(found["T"] for found in columns.values()):
        here = {c: names[of[c]] for c, found in columns.items() if found["T"] == loops}
        part = (
            frame[[*rest, *here]].rename(columns=here).dropna(subset=list(here.values()), how="all")
        )
        parts.append(part.assign(n_loops=int(loops)))
    words = ", ".join(f"{new} from {old}" if new != old else old for old, new in names.items())
    note = f"a row per number of loops, the loss in each column's cells: {words}"
    return pd.concat(parts, ignore_index=True), note


def trainer_log(state: dict[str, Any]) -> pd.DataFrame:
    """The log of a Hugging Face Trainer's state: a row per step, training and evaluation beside each other."""
    import pandas as pd

    log = pd.json_normalize([e for e in state["log_history"] if isinstance(e, dict)], sep="/")
    if "step" not in log:
        return log
    return log.groupby("step", sort=False, as_index=False).first()


def trainer_states(folder: Path) -> list[Path]:
    """A run's last state each: of `run/checkpoint-500/trainer_state.json` that of the most steps."""
    last: dict[Path, tuple[int, Path]] = {}
    for path in sorted(folder.rglob(TRAINER_STATE)):
        name, _, step = path.parent.name.rpartition("-")
        inside = name == "checkpoint" and step.isdigit()
        run = path.parent.parent if inside else path.parent
        at = int(step) if inside else 1 << 62  # the state beside the final model is the last
        if at >= last.get(run, (-1, path))[0]:
            last[run] = (at, path)
    return [path for _, path in last.values()]


def run_of(path: Path) -> str:
    """The run that a Trainer's state is of: its folder, above a checkpoint's."""
    folder = path.parent
    return folder.parent.name if folder.name.startswith("checkpoint-") else folder.name


def tensorboard(folder: Path) -> pd.DataFrame:
    """Every scalar of a folder of event files: run, step, and a column per tag."""
    import pandas as pd

    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise InputError(
            f"{folder}: event files are read by tensorboard, which is not installed: "
            "pip install 'parcae-scaling[tensorboard]', or download the scalars as CSV."
        ) from error
    parts = []
    for place in sorted({p.parent for p in folder.rglob(EVENTS)}):
        run = str(place.relative_to(folder)) if place != folder else folder.absolute().name
        events = EventAccumulator(str(place), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            rows = [(run, e.step, tag, e.value) for e in events.Scalars(tag)]
            parts.append(pd.DataFrame(rows, columns=["run", "step", "tag", "value"]))
    if not parts:
        raise InputError(
            f"{folder}: its event files hold no scalar; point at a run that logged some."
        )
    return reshaped(pd.concat(parts, ignore_index=True))[0]
