"""The same work on each of several inputs, side by side where there are cores for it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import connection, get_context
from typing import Any, TypeVar

from parcae_core.cpus import usable_cpus
from parcae_core.errors import UserError

T, R = TypeVar("T"), TypeVar("R")


def each(work: Callable[[T], R], inputs: Iterable[T]) -> list[R]:
    """What `work`, a function of a module, gives for each input, in their order.

    A new interpreter each and no fork: the command that waits has threads. The first error ends all of them.

    Raises:
        UserError: where the system ended a process.
        Whatever `work` raises.
    """
    todo = list(enumerate(inputs))
    cores = usable_cpus()
    if cores == 1 or len(todo) == 1 or any(one == "-" for _, one in todo):  # they have no stdin
        return [work(one) for _, one in todo]
    context, found, running = get_context("spawn"), {}, {}
    try:
        while todo or running:
            while todo and len(running) < cores:
                place, one = todo.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(work, one, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = place, one, process
            for ready in connection.wait(list(running)):
                place, one, process = running.pop(ready)
                found[place] = _received(ready, one, process)
    finally:
        for *_, process in running.values():
            process.terminate()
    return [found[place] for place in sorted(found)]


def _answer(work, one, theirs) -> None:
    """In the new process: work, and send what it gave or raised."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; one traceback is enough
    from analysis import progress

    progress.patience = float("inf")  # a bar of each would be drawn over the others
    try:
        answer = True, work(one)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller raises it
        error.add_note(traceback.format_exc())
        answer = False, error
    theirs.send(answer)


def _received(ours, one, process) -> Any:
    try:
        went_well, answer = ours.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"{one}: the process that read it was ended by the system (exit code {process.exitcode}); memory may have "
            "been short. Give one source at a time."
        ) from None
    process.join()
    if went_well:
        return answer
    raise answer
