"""What may end a sweep before its trials have: signals to the driver, and the loss of its cluster."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sweeps.waiting import say

LOOK_EVERY_S = 2.0
MISSED_LOOKS = 3  # a socket that a busy machine is slow to accept on is not gone
UNWIND_S = 15.0  # for the exception to reach the driver's main thread; then the process is ended


class ClusterLost(BaseException):
    """Ray's processes that the driver depends on are gone. No Exception: Tune would take it for a
    trial's."""


@contextmanager
def stop_on_signals(
    request_stop: Callable[[], object], end_at_once: Callable[[], object] | None = None
) -> Iterator[list[int]]:
    """First SIGINT, SIGTERM or SIGHUP: trials write a checkpoint and end. Second: end at once.

    Args:
        end_at_once: on the second; None is Tune's own way to end without the trials.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        received.append(number)
        if len(received) == 1:
            say("stopping: running trials write a checkpoint first; once more to stop at once")
            request_stop()
        elif end_at_once is not None:
            end_at_once()
        else:
            os.kill(os.getpid(), signal.SIGUSR1)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means to go on
        numbers.append(signal.SIGHUP)
    before = {s: signal.signal(s, handle) for s in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Stop writing to a terminal that has closed: it would raise where progress is printed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if os.isatty(number):
            os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def watched_cluster(request_stop: Callable[[], object], *, gcs_patience_s: float) -> Iterator[None]:
    """Raise ClusterLost in the main thread once this node's raylet or the head's GCS is gone.

    Ray's driver waits for a dead raylet for ever, and ends without a word when the GCS has been away
    for a minute.

    Args:
        request_stop: asks the workers that are left to write a checkpoint and end.
        gcs_patience_s: how long the GCS may be away; Kubernetes may start it again.
    """
    import ray

    node = ray._private.worker._global_node
    if node is None:  # through Ray Client, which has a time limit of its own
        yield
        return
    over = threading.Event()
    lost: list[str] = []

    def raise_in_main(number: int, frame: object) -> None:
        raise ClusterLost(lost[0])

    def watch() -> None:
        missed = {"raylet": 0, "GCS": 0}
        allowed = {"raylet": MISSED_LOOKS, "GCS": MISSED_LOOKS + gcs_patience_s / LOOK_EVERY_S}
        while not over.wait(LOOK_EVERY_S):
            gone = gone_processes(node)
            for name in missed:
                missed[name] = missed[name] + 1 if name in gone else 0
                if missed[name] >= allowed[name]:
                    return lose(name)

    def lose(name: str) -> None:
        where = "this machine's raylet" if name == "raylet" else "the head's GCS"
        lost.append(
            f"the Ray cluster is lost: {where} is gone (killed, out of memory, or its node ended); "
            f"its logs: {node.get_session_dir_path()}/logs"
        )
        request_stop()
        os.kill(os.getpid(), signal.SIGUSR2)
        if not over.wait(UNWIND_S):  # the main thread waits inside Ray, where no signal reaches it
            say(f"{lost[0]}; checkpoints are kept, go on with the same command")
            os._exit(1)

    before = signal.signal(signal.SIGUSR2, raise_in_main)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if lost:  # raised while in Ray's compiled code, it comes back as a SystemError
            raise ClusterLost(lost[0]) from error
        raise
    finally:
        over.set()
        signal.signal(signal.SIGUSR2, before)


def gone_processes(node: Any) -> list[str]:
    """Which of "raylet" and "GCS" do not listen any more.

    Args:
        node: Ray's own, of this process.
    """
    there = {
        "raylet": _accepts(socket.AF_UNIX, node.raylet_socket_name),
        "GCS": _accepts(socket.AF_INET, node.gcs_address),
    }
    return [name for name, accepts in there.items() if not accepts]


def _accepts(family: socket.AddressFamily, address: str) -> bool:
    """Whether a process listens there; a time-out is taken for a busy one."""
    host, _, port = address.rpartition(":")
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(LOOK_EVERY_S)
        try:
            client.connect(address if family == socket.AF_UNIX else (host, int(port)))
        except TimeoutError:
            return True
        except OSError:
            return False
    return True
