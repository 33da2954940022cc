"""Lines for the person who watches a run, and that person's signals; free of Ray."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parcae_core.trial import Trial
from sweeps.design.plan import short
from sweeps.store import Store


def label(trial: Trial) -> str:
    """A trial by its id and what its neighbours differ in."""
    budget = f" C={short(trial.budget_flops)}" if trial.budget_flops else ""
    seed = f" seed={trial.seed}" if trial.seed else ""
    return f"{trial.trial_id}{budget} mu={trial.mean_recurrence}{seed}"


def ended_line(store: Store, trial: Trial) -> str | None:
    """How a trial ended, read from the store; None while it has not."""
    state = store.state(trial)
    if state.state in ("failed", "diverged"):
        return f"{label(trial)}: {state.state}: {state.reason}"
    if state.state == "done" and (result := store.result(trial)):
        loss = {r.n_loops: r.val_loss for r in result.evaluation}
        return f"{label(trial)}: done, val_loss {loss[trial.mean_recurrence]:.4f}"
    return None


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
