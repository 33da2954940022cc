"""How a run ends early: signals, lost workers, and the lines that say so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOST_WORKERS_ALLOWED = 3  # per trial; node loss and pre-emption count, our own exceptions do not


@contextmanager
def stop_on_signals(
    request_stop: Callable[[], object], end_at_once: Callable[[], object] | None = None
) -> Iterator[list[int]]:
    """First SIGINT or SIGTERM: trials write a checkpoint and end. Second: end at once.

    Args:
        end_at_once: on the second; None is Tune's own way to end without the trials.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            say("stopping: running trials write a checkpoint first; once more to stop at once")
            request_stop()
        elif end_at_once is not None:
            end_at_once()
        else:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
