"""Where `scheduler: asha` compares trials, and what a worker does there. Free of Ray.

A trial tells its loss at a ninth and at a third of its steps, in the part of the schedule whose rate is
constant (unless a spec cools down for longer). The scheduler answers with a file in the trial's
folder; the worker that finds it writes a checkpoint and a result, as at any other end.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from parcae_core.training.metrics import read_metrics
from parcae_core.trial import Trial
from sweeps.storage.base import Lease
from sweeps.storage.files import read_json
from sweeps.store import Store

FACTOR = 3  # of the trials at a rung, one in so many goes on (ASHA's reduction factor)
N_RUNGS = 2
# Of the steps made: one batch is noisy. Trials see the same batches, which helps
AVERAGED_SHARE = 0.1
LOOK_EVERY_S = 1.0


def rungs_of(trial: Trial) -> list[int]:
    """Steps after which a trial is compared."""
    return [math.ceil(trial.n_steps / FACTOR**k) for k in range(N_RUNGS, 0, -1)]


def loss_at(metrics: Path, rung: int) -> tuple[int, float] | None:
    """The step of the first line of metrics at or past a rung, and the mean training loss before it,
    nats per token; None if there is no such line, or none of its losses is finite."""
    lines = read_metrics(metrics)
    step = next((line["step"] for line in lines if line["step"] >= rung), None)
    if step is None:
        return None
    recent = (x for x in lines if step * (1 - AVERAGED_SHARE) <= x["step"] <= step)
    losses = [x["train/loss"] for x in recent if isinstance(x.get("train/loss"), float)]
    return (step, sum(losses) / len(losses)) if losses else None


class Rungs:
    """Of a trial at work: tells its loss at each rung that it passes.

    Args:
        announce: to Tune, which answers once the scheduler has decided; of a driver that is gone it
            never returns, so it is called in a thread. None: the trial is not compared.

    Attributes:
        halt: why the scheduler wants the trial to end; None while it does not.
    """

    def __init__(
        self,
        store: Store,
        trial: Trial,
        held: Lease,
        stop_file: Path,
        announce: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.storage, self.files = store.storage, store.files(trial.trial_id)
        self.held, self.stop_file, self.announce = held, stop_file, announce
        made, compared = self.files.newest_step(), announce is not None
        self.left = [rung for rung in rungs_of(trial) if rung > made] if compared else []
        self.halt = self._read_halt() if compared else None  # of an attempt before

    def on_report(self, line: dict[str, Any]) -> None:
        """A line of the metrics, which is in the file by now."""
        while self.left and line["step"] >= self.left[0]:
            rung = self.left.pop(0)
            if (found := loss_at(self.files.metrics, rung)) is not None:
                self._ask(*found)

    def _ask(self, step: int, loss: float) -> None:
        said = {"state": "running", "step": step, "loss": loss}
        thread = threading.Thread(target=self.announce, args=(said,), daemon=True)
        thread.start()
        while thread.is_alive() and not self.stop_file.exists():
            thread.join(LOOK_EVERY_S)
            self.held.require()
        with suppress(OSError):  # training does not end because the store is away
            self.storage.pull([self.files.halt])
        self.halt = self._read_halt()

    def _read_halt(self) -> str | None:
        return (read_json(self.files.halt) or {}).get("reason")
