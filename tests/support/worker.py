"""One process of a run, for tests that kill it, stop it or start several.

Processes are forked from a server that has torch loaded already, so that one starts in a moment.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from parcae_core.result import Execution, Interrupted
from parcae_core.training.train import train
from parcae_core.trial import Trial
from tests.support.interrupt import stop_on_signal

STOPPED = 3
QUICK = {"device": "cpu", "threads": 1, "log_every_steps": 1}


class Worker:
    """A started process; more than one train together when `n_processes` says so."""

    def __init__(
        self,
        trial: Trial,
        data_dir: Path,
        run_dir: Path,
        *,
        rank: int = 0,
        n_processes: int = 1,
        **execution: Any,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self._result = run_dir / f"result-{rank}.json"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.process = context.Process(
            target=_work,
            args=(trial, data_dir, run_dir, rank, n_processes, QUICK | execution, self._result),
        )
        self.process.start()

    def wait(self) -> int:
        """Exit code; negative for a signal."""
        self.process.join(timeout=120)
        assert self.process.exitcode is not None, "still running after two minutes"
        return self.process.exitcode

    def result(self) -> dict[str, Any]:
        assert self.wait() == 0
        return json.loads(self._result.read_text())

    def wait_for_line(self, n_lines: int) -> None:
        """Wait until the run's metrics have this many lines, or the process has ended."""
        until = time.monotonic() + 60
        while self.process.is_alive() and time.monotonic() < until:
            if count_lines(self.run_dir) >= n_lines:
                return
            time.sleep(0.002)


def count_lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _work(
    trial: Trial,
    data_dir: Path,
    run_dir: Path,
    rank: int,
    n_processes: int,
    execution: dict[str, Any],
    result: Path,
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if n_processes > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the name of this machine may not resolve
        dist.init_process_group(
            "gloo", init_method=f"file://{run_dir}/meeting", rank=rank, world_size=n_processes
        )
    try:
        with stop_on_signal() as stop:
            execution = Execution(**execution, stop_requested=stop)
            done = train(trial, data_dir=data_dir, run_dir=run_dir, execution=execution)
        result.write_text(json.dumps(done.to_dict()))
    except Interrupted:
        sys.exit(STOPPED)
    finally:
        if n_processes > 1:
            dist.destroy_process_group()
