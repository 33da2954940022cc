"""Progress on stderr for what takes longer than two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
patience = 2.0  # s before anything is shown


def track(items: Iterable[T], words: str) -> Iterator[T]:
    """The items, with a bar on stderr from the second second on."""
    total = len(items) if isinstance(items, Sized) else None
    began, progress = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            if progress is None and time.monotonic() - began > patience:
                from rich.console import Console
                from rich.progress import Progress

                progress = Progress(console=Console(stderr=True))
                task = progress.add_task(words, total=total)
                progress.start()
            if progress is not None:
                progress.update(task, completed=done)
            yield item
        if progress is not None:
            progress.update(task, completed=total)
    finally:
        if progress is not None:
            progress.stop()
