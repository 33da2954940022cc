"""Tells the display what Ray Tune does, and counts the workers that it loses."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import Searcher
from rich.console import Console

from parcae_core.trial import Trial
from sweeps.branches import Waiting
from sweeps.runner.display import Display, label
from sweeps.runner.losses import LOST_WORKERS_ALLOWED, Losses, loss_of
from sweeps.store import Store


class Progress(tune.Callback):
    """Told by Tune; what ended how is read from the store."""

    def __init__(
        self,
        store: Store,
        trials: list[Trial],
        console: Console | None = None,
        *,
        lost_workers: int = LOST_WORKERS_ALLOWED,
    ) -> None:
        self.display = Display(store, trials, console)
        self.losses = Losses(store, trials, lost_workers)
        self.n_running = 0

    def say(self, text: str) -> None:
        """For what Tune pickles with its searcher, which the display's own method would prevent."""
        self.display.say(text)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that we never ask for; terminals cannot be."""
        left_out = ("display", "losses")
        return {k: v for k, v in vars(self).items() if k not in left_out}

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        planned = self.display.trials[trial.config["trial_id"]]
        self.display.storage.pull(now=True)
        self.display.end(planned, self.display.store.state(planned).state)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._lost(trial)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.display.ended[trial.config["trial_id"]] = "lost"
        self._lost(trial, given_up=True)

    def _lost(self, trial: Any, *, given_up: bool = False) -> None:
        planned = self.display.trials[trial.config["trial_id"]]
        self.display.storage.pull(now=True)
        # on record, and its worker is replaced
        if self.display.store.state(planned).state == "failed":
            return
        line = self.losses.record(planned, loss_of(_error_of(trial)), given_up=given_up)
        self.display.say(f"{label(planned)}: {line}")
        self._allow(trial)

    def _allow(self, trial: Any) -> None:
        """Tune counts every loss; what it allows follows those that count."""
        trial.max_failures = trial.num_failures + self.losses.left(trial.config["trial_id"])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        running = [t for t in trials if t.status == "RUNNING"]
        self.n_running = len(running)
        if self.display.show(t.config["trial_id"] for t in running):
            for trial in running:
                self._allow(trial)


class InOrder(Searcher):
    """Gives Tune the trials in their order, a branch not before it can begin."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.waiting = waiting
        self.at_work: dict[str, Trial] = {}  # by Tune's own id, until it is done with one

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        trial = self.waiting.ready()
        if trial is None:
            return None if self.at_work else Searcher.FINISHED
        self.waiting.trials.remove(trial)
        self.at_work[trial_id] = trial
        return {"trial_id": trial.trial_id}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        trial = self.at_work.pop(trial_id, None)
        if error and trial is not None:
            self.waiting.give_up(trial)
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
    with suppress(Exception):  # a class that this process lacks, or nothing was kept
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    with suppress(Exception):
        return Path(trial.error_file).read_text()
    return None
