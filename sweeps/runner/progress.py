"""What a person watching a sweep sees on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import Searcher
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from parcae_core.trial import Trial
from sweeps.branches import Waiting
from sweeps.design.estimate import duration
from sweeps.design.trunks import flops_to_make
from sweeps.reports import FINISHED
from sweeps.runner.losses import LOST_WORKERS_ALLOWED, Losses, loss_of
from sweeps.runner.trial_lines import ended_line, label
from sweeps.storage.base import Polling
from sweeps.store import Store, TrialState

EVERY_S = 5.0
LIVE_EVERY_S = 1.0
WARM_UP_S = 30.0  # before that, starting up would be taken for slow training


class Progress(tune.Callback):
    """Lines of progress; told by Tune, but what ended how is read from the store."""

    def __init__(
        self,
        store: Store,
        trials: list[Trial],
        console: Console | None = None,
        *,
        lost_workers: int = LOST_WORKERS_ALLOWED,
    ) -> None:
        self.store, self.storage = store, Polling(store.storage)
        self.losses = Losses(store, trials, lost_workers)
        self.console = console or Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.every_s = LIVE_EVERY_S if self.console.is_terminal else EVERY_S
        self.trials = {t.trial_id: t for t in trials}
        self.ended: dict[str, str] = {}
        self.n_running = 0
        self.started_at = self.said_at = time.monotonic()
        self.last = ""

    def say(self, text: str) -> None:
        elapsed = time.monotonic() - self.started_at
        line = f"[{elapsed:7.1f} s] {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that we never ask for; terminals cannot be."""
        left_out = ("console", "live", "store", "storage", "losses")
        return {k: v for k, v in vars(self).items() if k not in left_out}

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        planned = self.trials[trial.config["trial_id"]]
        self.storage.pull(now=True)
        state = self.store.state(planned)
        self.ended[planned.trial_id] = state.state
        if (line := ended_line(self.store, planned)) is not None:
            done = sum(s in FINISHED for s in self.ended.values())
            of = f" ({done} of {len(self.trials)} finished)" if state.state == "done" else ""
            self.say(line + of)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._lost(trial)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.ended[trial.config["trial_id"]] = "lost"
        self._lost(trial, given_up=True)

    def _lost(self, trial: Any, *, given_up: bool = False) -> None:
        planned = self.trials[trial.config["trial_id"]]
        self.storage.pull(now=True)
        if self.store.state(planned).state == "failed":  # on record, and its worker is replaced
            return
        line = self.losses.record(planned, loss_of(_error_of(trial)), given_up=given_up)
        self.say(f"{label(planned)}: {line}")
        self._allow(trial)

    def _allow(self, trial: Any) -> None:
        """Tune counts every loss; what it allows follows those that count."""
        trial.max_failures = trial.num_failures + self.losses.left(trial.config["trial_id"])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.n_running = sum(t.status == "RUNNING" for t in trials)
        if time.monotonic() - self.said_at < self.every_s:
            return
        self.storage.pull()
        self.said_at = time.monotonic()
        for trial in trials:
            if trial.status == "RUNNING":
                self._allow(trial)
        running = {
            t.config["trial_id"]: self.store.state(self.trials[t.config["trial_id"]])
            for t in trials
            if t.status == "RUNNING"
        }
        if self.live.is_started:
            self.live.update(self._table(running), refresh=True)
            return
        steps = ", ".join(self._step(self.trials[i], s) for i, s in running.items())
        text = f"{len(self.ended)} of {len(self.trials)} ended; {steps}"
        if text != self.last and running:
            self.say(text + self._remaining(running))
            self.last = text

    def _table(self, running: dict[str, TrialState]) -> Table:
        left = self._remaining(running).lstrip("; ")
        title = f"{self.store.name}: {len(self.ended)} of {len(self.trials)} ended  {left}"
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("trial", "step", "", "loss", "tokens/s"):
            table.add_column(column, justify="left" if column in ("trial", "") else "right")
        for trial_id, state in running.items():
            planned = self.trials[trial_id]
            table.add_row(
                label(planned),
                f"{state.step}/{planned.n_steps}",
                ProgressBar(total=planned.n_steps, completed=state.step, width=20),
                f"{state.loss:.3f}" if isinstance(state.loss, float) else "-",
                f"{state.tokens_per_s:,.0f}" if state.tokens_per_s else "-",
            )
        return table

    def _step(self, planned: Trial, state: TrialState) -> str:
        loss = f" loss {state.loss:.3f}" if isinstance(state.loss, float) else ""
        return f"{label(planned)} step {state.step}/{planned.n_steps}{loss}"

    def _remaining(self, running: dict[str, TrialState]) -> str:
        """Time left, from the FLOPs made so far in this session."""
        made = sum(self.trials[i].own_flops("exact") for i in self.ended)
        for trial_id, state in running.items():
            planned = self.trials[trial_id]
            own_steps = max(0, state.step - planned.shared_steps)
            made += own_steps / planned.n_steps * planned.train_flops("exact")
        left = flops_to_make(self.trials.values(), "exact") - made
        elapsed = time.monotonic() - self.started_at
        if elapsed < WARM_UP_S or made < 0.02 * (made + left):
            return ""
        return f"; about {duration(left / made * elapsed)} left"


class InOrder(Searcher):
    """Gives Tune the trials in their order, a branch not before it can begin."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.waiting = waiting
        self.at_work: set[str] = set()  # by Tune's own id, until it is done with one

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        trial = self.waiting.ready()
        if trial is None:
            return None if self.at_work else Searcher.FINISHED
        self.waiting.trials.remove(trial)
        self.at_work.add(trial_id)
        return {"trial_id": trial.trial_id}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.at_work.discard(trial_id)
        self.waiting.asked_anew()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Nothing: the store knows what is left, and no run of Tune is restored."""


class StopWhenIdle(tune.Stopper):
    """Once a signal has asked for it, ends the run as soon as no trial is at work.

    Trials that wait for a node or a core would otherwise have to be placed to learn of it.
    """

    def __init__(self, signals: list[int], progress: Progress) -> None:
        self.signals, self.progress = signals, progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.signals) and self.progress.n_running == 0


def _error_of(trial: Any) -> BaseException | str | None:
    """What Tune has kept of a trial's last failure."""
    for read in (_unpickled, lambda t: Path(t.error_file).read_text()):
        with suppress(Exception):  # a class that this process lacks, or nothing was kept
            return read(trial)
    return None


def _unpickled(trial: Any) -> BaseException:
    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
