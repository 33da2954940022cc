"""Stopping a run on purpose: a flag that a signal raises and the training loop asks for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    """Callable for `Execution.stop_requested`; `request()` may come from a signal or a thread."""

    def __init__(self) -> None:
        self._requested = False

    def __call__(self) -> bool:
        return self._requested

    def request(self) -> None:
        self._requested = True


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[StopFlag]:
    """A flag that the given signals (SIGTERM when none is given) raise inside the block.

    Only the main thread of a process may install handlers, so this is the caller's choice and not
    train()'s: Ray runs trials in other threads.
    """
    flag = StopFlag()
    wanted = signals or (signal.SIGTERM,)
    before = {s: signal.signal(s, lambda *_: flag.request()) for s in wanted}
    try:
        yield flag
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
