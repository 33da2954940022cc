"""One trial trained by several processes: as many as it reserves GPUs, or as its spec says.

    train_together(trial, ...) is parcae_core.training.train.train with trial.resources.processes processes

The processes are children of this one while the trial has its place on one node. Where no node is
large enough, its placement group has a bundle per process, and each further process is the child
of an actor in its bundle (`sweeps.runner.process_group_ray`). They live and die together: one that ends without a
message ends all of them, and the attempt with ProcessLost, so that the next one starts from the newest
checkpoint. None outlives the worker that started it (`sweeps.runner.process_main`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from parcae_core.result import Execution, Interrupted, TrainResult
from parcae_core.trial import Trial, trial_to_dict
from sweeps import child
from sweeps.runner.errors import ProcessFailed, ProcessLost
from sweeps.storage.tempdir import OwnedFolder

ASK_S = 0.2
# After the first failure, how long the others may take to send theirs: one process that dies makes
# all the rest fail, and what they then raise is not the reason
GRACE_S = 2.0


class Process(Protocol):
    """A process of the group, seen from the one that waits for it."""

    address: str | None

    def start(self, task: dict[str, Any], receive: Callable[[dict[str, Any] | None], None]) -> None:
        """Start it; `receive` gets its messages and, when it has ended, None."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""

    def end(self) -> None:
        """End it now."""

    def death(self) -> str:
        """How a process that has ended without a last message did so."""


def train_together(
    trial: Trial,
    *,
    data_dir: Path,
    run_dir: Path,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    execution: Execution = Execution(),  # noqa: B008 - frozen
    keep_open: Sequence[int] = (),
    processes: Sequence[Process] | None = None,
) -> TrainResult:
    """Train a trial with all its processes; what `train` returns and raises, and

    Args:
        keep_open: file descriptors that the processes inherit.
        processes: in place of children of this process.

    Raises:
        ProcessLost: if one of the processes ended without a message.
        ProcessFailed: if one raised; caused by an OSError if that is what it was.
    """
    n = trial.resources.processes
    processes = processes or [LocalProcess(keep_open) for _ in range(n)]
    settings = {
        f.name: getattr(execution, f.name) for f in fields(execution) if f.name != "stop_requested"
    }
    with meeting_place(processes) as where, ExitStack() as stack:
        messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        for rank, process in enumerate(processes):
            task = {
                "trial": trial_to_dict(trial),
                "data_dir": str(data_dir),
                "run_dir": str(run_dir),
                "execution": settings,
                "rank": rank,
                "n": n,
                # On one node all see all of the trial's GPUs; a bundle shows its own alone
                "local_rank": rank if "file:" in where["meeting"] else 0,
            }
            stack.callback(process.end)
            process.start(task | where, lambda message, rank=rank: messages.put((rank, message)))
        group = _ProcessGroup(processes, messages, on_report)
        return group.wait(execution.stop_requested or (lambda: False))


class _ProcessGroup:
    """Waiting for all processes of a trial."""

    def __init__(self, processes: Sequence[Process], messages: queue.Queue, on_report: Any) -> None:
        self.processes, self.messages, self.on_report = processes, messages, on_report
        self.last: dict[int, dict[str, Any]] = {}  # last messages by rank
        self.left = set(range(len(processes)))
        self.stopping = False

    def wait(self, stop_requested: Callable[[], bool]) -> TrainResult:
        while self.left and not self._trouble():
            self._receive(ASK_S)
            if not self.stopping and stop_requested():
                self.stopping = True
                self.processes[0].stop()  # the trainer sees to it that all stop at the same step
        if self._trouble():
            for _ in range(round(GRACE_S / ASK_S)):
                if self.left:
                    self._receive(ASK_S)
            self._raise()
        first = self.last[0]
        if "interrupted" in first:
            raise Interrupted(first["interrupted"], TrainResult.from_dict(first["result"]))
        return TrainResult.from_dict(first["result"])

    def _receive(self, timeout_s: float) -> None:
        try:
            rank, message = self.messages.get(timeout=timeout_s)
        except queue.Empty:
            return
        if message is None:
            self.left.discard(rank)
            if rank not in self.last:
                self.last[rank] = {"lost": self.processes[rank].death()}
        elif "report" not in message:
            self.last[rank] = message
        elif self.on_report is not None:
            self.on_report(message["report"])

    def _trouble(self) -> bool:
        return any("failed" in message or "lost" in message for message in self.last.values())

    def _raise(self) -> None:
        """Raise for what was first: a failure of its own, then a death, then losing a peer."""
        failures = {rank: w["failed"] for rank, w in self.last.items() if "failed" in w}
        for rank, failure in failures.items():
            if failure["peer"]:
                continue
            said = ProcessFailed(f"{failure['reason']} (process {rank} of {len(self.processes)})")
            said.add_note(failure["traceback"])
            if failure["environment"] is not None:
                raise said from OSError(failure["environment"])
            raise said
        for rank, message in self.last.items():
            if "lost" in message:
                raise ProcessLost(f"process {rank} of {len(self.processes)} {message['lost']}")
        reason = next(iter(failures.values()))["reason"]
        raise ProcessLost(f"the processes lost each other: {reason}")


class LocalProcess:
    """A process of the group on this node."""

    def __init__(self, keep_open: Sequence[int] = ()) -> None:
        self.keep_open = tuple(keep_open)
        self.address: str | None = None  # of its node, where the group is on several
        self.process: subprocess.Popen | None = None

    def start(self, task: dict[str, Any], receive: Callable[[dict[str, Any] | None], None]) -> None:
        answers, theirs = os.pipe()
        os.set_inheritable(theirs, True)
        try:
            self.process = child.start(
                *("sweeps.runner.process_main", str(os.getpid()), str(theirs)),
                stdin=subprocess.PIPE,
                pass_fds=(theirs, *self.keep_open),
            )
        finally:
            os.close(theirs)
        self._send(json.dumps(task))
        self.reader = threading.Thread(target=_read, args=(answers, receive), daemon=True)
        self.reader.start()

    def stop(self) -> None:
        self._send("stop")

    def end(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):  # a word that it did not live to read
            self.process.stdin.close()
        self.reader.join()

    def death(self) -> str:
        code = self.process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def _send(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it is gone, which its reader finds out
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()


def _read(descriptor: int, receive: Callable[[dict[str, Any] | None], None]) -> None:
    with os.fdopen(descriptor) as answers:
        for line in answers:
            try:
                receive(json.loads(line))
            except ValueError:
                break  # cut short by its death
    receive(None)


@contextmanager
def meeting_place(processes: Sequence[Process]) -> Iterator[dict[str, Any]]:
    """Where the processes find each other: a file on one machine, else a port of the first."""
    addresses = {m.address for m in processes}
    if addresses == {None}:
        with OwnedFolder("parcae-group-") as folder:
            yield {"meeting": f"file://{folder}/meeting", "one_machine": True}
        return
    import ray

    here = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((here, 0))
        port = probe.getsockname()[1]
    yield {"meeting": f"tcp://{here}:{port}", "one_machine": addresses == {here}}
