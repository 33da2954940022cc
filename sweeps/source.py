"""A sweep as a source of laws and figures, also while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.figures.decisions import Decisions


def register() -> None:
    """Let `load` collect a sweep that runs."""
    from analysis.table import load

    load.register("sweep", load.Reader(claims=is_sweep, read=_collected))


def is_sweep(text: str) -> bool:
    """A sweep's folder or URL, or the name of one under runs/ where no file has that name."""
    from sweeps.storage.objects import is_url

    if is_url(text):
        return _is_sweep_at(text)
    folders = [Path(text)] if Path(text).exists() else [Path("runs") / text]
    return any((folder / "sweep.json").is_file() for folder in folders)


def _is_sweep_at(url: str) -> bool:
    """Whether a sweep's plan lies below a URL; one request, and none for a table or a web page."""
    from analysis.table.files import suffix
    from parcae_core.errors import UserError
    from sweeps.store import Store

    place, _, name = url.rstrip("/").rpartition("/")
    if url.startswith("http") or suffix(Path(name))[0]:
        return False
    with suppress(OSError, UserError):  # who reads the source says what is wrong with it
        store = Store(place, name)
        store.storage.pull([store.root / "sweep.json"])
        return (store.root / "sweep.json").is_file()
    return False


def _collected(text: str):
    """What has ended of a sweep, from its trials' folders: its table may be older, or not there yet."""
    from analysis.errors import InputError
    from analysis.table import load
    from sweeps.records import records_of
    from sweeps.store import open_sweep

    store = open_sweep(text)
    frame = records_of(store)
    sweep = store.sweep or {}
    planned = len(sweep.get("trials", ()))
    if frame is None:
        raise InputError(
            f"{text}: none of its {planned} trials has ended yet; `parcae status {text}` shows them."
        )
    ended = frame.trial_id.nunique()
    what = "candidates have been run" if sweep.get("design") == "adaptive" else "trials have ended"
    notes = [f"{ended} of {planned} {what}; the others are not in this table"]
    damaged = [f"{trial}: {problem}" for trial, problem in store.problems().items()]
    return load.Found(
        frame=frame, where=text, notes=(*(notes if ended < planned else ()), *damaged)
    )


def history(source: str) -> tuple[dict[str, Callable], Decisions | None]:
    """The figure of a sweep's learning curves, where its trials have logged any, and what it has decided, if it
    is adaptive; nothing of any other source."""
    if not is_sweep(source):
        return {}, None
    from analysis.figures import curves as curve_figures
    from parcae_core.errors import UserError
    from sweeps.history import curves_of, decisions_of
    from sweeps.store import open_sweep

    store, more = open_sweep(source), {}
    with suppress(UserError):  # nothing is logged yet: the laws have their say without
        more["curves"] = functools.partial(curve_figures.curves, curves_of(store))
    return more, decisions_of(store)
