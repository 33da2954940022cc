"""Processes forked from a server that has torch loaded, so that one starts in a moment.

A session on a card has some fifty processes, and torch takes seconds to load. The server imports and
does nothing else: CUDA does not survive a fork, so each process meets the device by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# None of them asks for a device. The compiler takes two seconds, which a trial does not need
_LOADED = ["benchmarks.cases", "benchmarks.ops", "parcae_core.training.train"]
_COMPILER = ["torch._dynamo"]


def start(module: str, arguments: Sequence[str], log: Path, *, leads: bool = False) -> BaseProcess:
    """Run `module.main(arguments)` in a process of its own, what it prints appended to `log`.

    Args:
        leads: a process group, so that what it starts ends with it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED + _COMPILER * leads)
    process = context.Process(target=_run, args=(module, list(arguments), str(log), leads))
    process.start()
    return process


def end(process: BaseProcess) -> None:
    """End a process, and its group if it leads one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _run(module: str, arguments: list[str], log: str, leads: bool) -> None:
    if leads:
        os.setsid()
    os.chdir(ROOT)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(written, stream)
    sys.exit(importlib.import_module(module).main(arguments))
