"""A trial shown on the W&B server while it trains, by a process of its own.

The worker starts the process and forgets it until the trial ends. The process tails metrics.jsonl:
the file is the queue between the two, so nothing waits for the server and nothing is lost by it.
When the trial has ended the worker says so and grants a few seconds; what has not been sent by then
is written offline by the worker, complete, for `parcae sync`.

    worker -> process (stdin)     "end": the trial's outcome is on the disk. End of file: it died.
    process -> worker (stdout)    connected | failed REASON | complete
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from parcae_core.training.metrics import parse_lines
from parcae_core.trial import Trial
from sweeps import child
from sweeps.store import Store
from sweeps.tracking.trial_run import begin, end, forget_runs, log_rows

if TYPE_CHECKING:
    import wandb

POLL_S = 1.0  # how often the process looks for new lines
INIT_TIMEOUT_S = 20.0  # nobody waits for it; W&B's own default is 90 s
RETRY_EVERY_S = 30.0  # a server that comes back during a trial is found
FINISH_TIMEOUT_S = 30.0
# The end of a trial waits for the server as long as this, if it has answered before
SEND_S = 4.0
# and for an answer, while the process is young enough to be still asking, as long as this: over all
# trials of a worker, until an answer comes. So a server that cannot be reached costs a worker this
# much and the writing of the offline runs.
PATIENCE_S = 2.0
ASKING_S = 10.0

_patience_s = PATIENCE_S
_worker: IO[str] = sys.stdout  # of the process: where the worker listens


class Live:
    """The worker's end of it."""

    def __init__(self, store: Store, trial_id: str, project: str) -> None:
        self._started = time.monotonic()
        self._answered, self._over = threading.Event(), threading.Event()
        self._problem: str | None = None
        self._connected = self._complete = False
        self._process = child.start(
            *("sweeps.tracking.live", str(store.root), trial_id, project),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def end(self) -> str | None:
        """The trial's outcome is on the disk: have it sent; why it was not, or None.

        Waits only while there is hope; see SEND_S and PATIENCE_S.
        """
        global _patience_s
        with contextlib.suppress(OSError):
            self._process.stdin.write("end\n")
            self._process.stdin.flush()
        began = time.monotonic()
        if began - self._started < ASKING_S:
            self._answered.wait(max(_patience_s, 0.0))
        if self._connected:
            _patience_s = PATIENCE_S
            self._over.wait(SEND_S)
        else:
            _patience_s -= time.monotonic() - began
        self.close()
        if self._complete:
            return None
        said = "did not take the run in time" if self._connected else "did not answer"
        return self._problem or f"W&B online: the server {said}"

    def close(self) -> None:
        """End the process at once; also right when the trial goes on elsewhere."""
        child.end(self._process)
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _listen(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                word, _, rest = line.strip().partition(" ")
                if word == "connected":
                    self._problem, self._connected = None, True
                    self._answered.set()
                elif word == "failed":
                    self._problem = f"W&B online: {rest}"
                    self._answered.set()
                elif word == "complete":
                    self._complete = True
                    self._over.set()
        for waited_for in (self._answered, self._over):
            waited_for.set()


class Tail:
    """New whole lines of a metrics.jsonl; a file that was rewritten is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path, self._at, self._inode = path, 0, None

    def read(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._at:
                    self._at, self._inode = 0, status.st_ino
                file.seek(self._at)
                data = file.read()
        except OSError:
            return []  # not there yet, or the file system's trouble is the trainer's to report
        whole = data.rfind(b"\n") + 1
        self._at += whole
        return parse_lines(data[:whole])


def show(store: Store, trial: Trial, project: str, ended: threading.Event) -> None:
    """Mirror a trial until it has ended. Raises what W&B raises."""
    run = _connect(store, trial, project, ended)
    if run is None:
        return
    say("connected")
    tail = Tail(store.files(trial.trial_id).metrics)
    # An earlier attempt may have sent steps that this one, from an older checkpoint, makes again
    reached = run.starting_step - 1
    over = False
    while not over:
        over = ended.wait(POLL_S)
        rows = [r for r in tail.read() if r["step"] > reached]
        log_rows(run, rows)
        reached = max([reached, *(r["step"] for r in rows)])
    end(run, store, trial, mode="online")
    say("complete")


def _connect(store: Store, trial: Trial, project: str, ended: threading.Event) -> wandb.Run | None:
    """The run, as soon as the server gives it; None if the trial ends before."""
    import wandb

    while not ended.is_set():
        try:
            return begin(
                store,
                trial,
                project=project,
                mode="online",
                init_timeout_s=INIT_TIMEOUT_S,
                finish_timeout_s=FINISH_TIMEOUT_S,
            )
        except wandb.errors.UsageError:  # no key, or a wrong one: time does not cure it
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            say(f"failed {type(error).__name__}: {error}")
            forget_runs()
            ended.wait(RETRY_EVERY_S)
    return None


def say(text: str) -> None:
    """A line for the worker."""
    print(" ".join(text.split()), file=_worker, flush=True)


def main(root: str, trial_id: str, project: str) -> None:
    """The process."""
    global _worker
    _worker = child.private_stdout()
    try:
        folder = child.own_tempdir()
    except OSError as error:
        say(f"failed {type(error).__name__}: {error}")
        os._exit(0)
    store = Store(Path(root).parent, Path(root).name)
    ended = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "end":
                ended.set()
        folder.close()
        os._exit(1)  # the worker is gone; the attempt that replaces it goes on with the run

    threading.Thread(target=listen, daemon=True).start()
    try:
        show(store, store.trial(trial_id), project, ended)
    except Exception as error:  # noqa: BLE001 - the worker writes the run offline instead
        say(f"failed {type(error).__name__}: {error}")
    folder.close()
    os._exit(0)  # W&B's own clean-up at exit may wait for the server again


if __name__ == "__main__":
    main(*sys.argv[1:])
