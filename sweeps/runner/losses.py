"""Workers that are gone: why, what is left of it in state.json, and whether another attempt is made.

A loss after which the trial's newest checkpoint is newer than at the loss before made progress, and does
not count: pre-emption may go on for ever. Losses without progress do: the same will happen again.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from parcae_core.trial import Trial
from sweeps.reports import StateReport
from sweeps.store import Store

LOST_WORKERS_ALLOWED = 3  # without progress, per trial


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a worker is gone, and what may help."""

    reason: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.reason}. {self.advice}" if self.advice else self.reason


_MEMORY = (
    "Give each trial more of a node (resources.cpus, so that fewer run side by side), or lower "
    "batch_sequences"
)


def loss_of(error: BaseException | str | None) -> Loss:
    """What Ray says of a worker's end, in a sentence."""
    text = str(error or "")
    if missing := re.search(r"No module named '([^']+)'", text):
        return Loss(
            f"its node has no module {missing[1]!r}",
            "Install the same versions on every node: pip install -c constraints.txt -e '.[sweep]'",
        )
    if "low on memory" in text or "OUT_OF_MEMORY" in text or "OutOfMemory" in type(error).__name__:
        used = re.search(r"was (\S+ ?/ ?\S+)", text)
        amount = f" with {used[1]} in use" if used else ""
        return Loss(f"Ray ended it because its node ran low on memory{amount}", _MEMORY)
    if re.search(r"node (\S+ )?(has )?(died|was terminated|is dead)|NODE_DIED|preempted", text):
        return Loss("its node is gone")
    if "ActorUnavailable" in type(error).__name__ or "temporarily unavailable" in text:
        return Loss("its process or its node does not answer any more; one of them is gone")
    if "SYSTEM_ERROR" in text or "SIGKILL" in text or "worker process has died" in text:
        return Loss(
            "its process was killed from outside or crashed; most often the system took its memory "
            "back, which `dmesg` on its node shows",
            _MEMORY,
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return Loss(lines[-1][:300] if lines else "its worker is gone, and nothing says why")


def loss_of_process(exit_code: int | None) -> Loss:
    """What the end of a process of ours says; a negative code is a signal."""
    if exit_code is None or exit_code >= 0:
        return Loss(f"its process ended with exit code {exit_code}")
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        how = "its process was killed by SIGKILL; that is how the system takes memory back"
        return Loss(f"{how} (`dmesg` shows it)", _MEMORY)
    return Loss(f"its process was ended by {name}")


class Losses:
    """The losses of one `run`, by trial."""

    def __init__(self, store: Store, trials: Iterable[Trial], allowed: int) -> None:
        self.store, self.allowed = store, allowed
        self.counted: Counter[str] = Counter()  # without progress
        self._before = {t.trial_id: self._report(t.trial_id) for t in trials}  # at the last loss

    def _report(self, trial_id: str) -> StateReport:
        return self.store.report(trial_id) or StateReport(state="planned")

    def has_progressed(self, trial_id: str) -> bool:
        """Whether there is a newer checkpoint than at the last loss."""
        newest = self._report(trial_id).checkpoint_step
        return newest > self._before[trial_id].checkpoint_step

    def left(self, trial_id: str) -> int:
        """Losses that may follow now; the next one is free after progress."""
        return self.allowed - self.counted[trial_id] + self.has_progressed(trial_id)

    def record(self, trial: Trial, loss: Loss, *, given_up: bool = False) -> str:
        """Count a loss, and leave it in state.json.

        Args:
            given_up: the scheduler makes no further attempt, whatever is allowed.

        Returns:
            A line for the person who watches.
        """
        trial_id = trial.trial_id
        report = self._report(trial_id)
        began = report.attempts > self._before[trial_id].attempts
        if began and report.state == "planned" and report.reason is not None:
            loss = Loss(report.reason)  # the worker could still say it itself
        progressed = self.has_progressed(trial_id)
        self.counted[trial_id] += not progressed
        self._before[trial_id] = report
        path = self.store.files(trial_id).state
        replace(
            report,
            state="planned",
            reason=f"worker lost at step {report.step}: {loss}",
            lost_workers=report.lost_workers + 1,
            lost_reason=str(loss),
        ).write(path)
        self.store.storage.push(path)
        n = self.counted[trial_id]
        if given_up or n > self.allowed:
            return f"worker lost at step {report.step}: {loss}; given up after {n} losses without progress"
        count = "" if progressed else f" ({n} of {self.allowed} losses without progress)"
        return (
            f"worker lost at step {report.step}: {loss.reason}; starting again from its last checkpoint, "
            f"step {report.checkpoint_step}{count}"
        )
