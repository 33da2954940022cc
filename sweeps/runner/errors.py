"""Telling the system's failures, which another attempt may cure, from our own, which it cannot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from parcae_core.errors import OutOfMemory, is_out_of_memory


class ProcessLost(Exception):
    """One of a trial's processes is gone; another attempt goes on from the newest checkpoint."""


class ProcessFailed(Exception):
    """One of a trial's processes raised; its own words, and its traceback as a note.

    The cause is an OSError if the system had failed there.
    """


def environment(error: BaseException) -> BaseException | None:
    """The system's failure behind an exception (disk full, no memory), if that is what it is.

    A GPU's memory counts: on a shared card what a neighbour takes, another attempt may find free.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (OSError, ProcessLost, OutOfMemory)) or is_out_of_memory(seen):
            return seen
        seen = seen.__cause__
    return None


def process_ending() -> bool:
    """Whether Python is shutting down in this process while another thread is still at work.

    A Ray worker whose driver is gone returns from its main thread; from then on no pool takes work,
    and what a trial raises in its own thread says nothing of the trial.
    """
    try:
        with ThreadPoolExecutor(1) as probe:
            probe.submit(int)
    except RuntimeError:
        return True
    return False


def reason_of(error: BaseException) -> str:
    """What to tell the user, in a line."""
    return str(error) if isinstance(error, ProcessFailed) else f"{type(error).__name__}: {error}"
