"""Processes that talk to W&B, so that nothing else waits for it; and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO


def start(*command: str, **pipes: int) -> subprocess.Popen[str]:
    """A Python process of our own with these arguments, apart from the terminal's signals."""
    return subprocess.Popen(
        [sys.executable, *command],
        text=True,
        cwd=Path(__file__).parents[2],  # a worker may have the project in its path only
        start_new_session=True,  # Ctrl-C is for the driver, which lets trials end first
        **pipes,
    )


def end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, at once.

    W&B's service has a session of its own and would go on trying to send for a while.
    """
    for pid in (*_children(process.pid), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def private_stdout() -> IO[str]:
    """The stdout of this process, kept from those it starts: they would hold the pipe open."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return kept


def _children(pid: int) -> list[int]:
    """Direct children; none once the process has been waited for, or without a /proc."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found
