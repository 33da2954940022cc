"""Python processes of our own, apart from the terminal's signals; and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sweeps.storage.tempdir import OwnedFolder


def start(module: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """`python -m module args`, with the modules that this process finds."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is for the driver, which lets trials end first
        **options,
    )


def output_of(module: str, *args: str, timeout_s: float, **options: Any) -> tuple[int | None, str]:
    """Run a module to its end: its exit code, None if it was ended after the time, and its stdout."""
    process = start(module, *args, stdout=subprocess.PIPE, **options)
    try:
        text, _ = process.communicate(timeout=timeout_s)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        end(process)
        process.stdout.close()


def end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, at once.

    W&B's service has a session of its own and would go on trying to send for a while.
    """
    for pid in (*children(process.pid), process.pid):
        with suppress(ProcessLookupError):
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


def own_tempdir() -> OwnedFolder:
    """A folder that takes the temporary files of this process from now on."""
    folder = OwnedFolder("parcae-child-")
    tempfile.tempdir = str(folder.path)
    return folder


def children(pid: int) -> list[int]:
    """Direct children; none once the process has been waited for, or without a /proc."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found
