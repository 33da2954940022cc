"""What a person watching a sweep sees on stderr: bars on a terminal, elsewhere a line now and then; free of Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from parcae_core.trial import Trial
from sweeps.design.estimate import duration
from sweeps.design.plan import short
from sweeps.reports import FINISHED, StateReport
from sweeps.storage.base import Polling
from sweeps.store import Store

EVERY_S = 30.0
LIVE_EVERY_S = 1.0
WINDOW_S = 60.0  # the time left follows the rate of the last minute
WARM_UP_S = 20.0  # before that, starting up would be taken for slow training


def label(trial: Trial) -> str:
    """A trial by its id and what its neighbours differ in."""
    budget = f" C={short(trial.budget_flops)}" if trial.budget_flops else ""
    seed = f" seed={trial.seed}" if trial.seed else ""
    return f"{trial.trial_id}{budget} mu={trial.mean_recurrence}{seed}"


def ended_line(store: Store, trial: Trial) -> str | None:
    """How a trial ended, read from the store; None while it has not."""
    state = store.state(trial)
    if state.state in ("failed", "diverged", "stopped"):
        return f"{label(trial)}: {state.state}: {state.reason}"
    if state.state == "done" and (result := store.result(trial)):
        return f"{label(trial)}: done, val_loss {result.loss_at(trial.mean_recurrence):.4f}"
    return None


class Pace:
    """FLOPs that this session has made, and how long the rest takes at the last minute's rate."""

    def __init__(self, trials: Sequence[Trial], steps: Mapping[str, int], now: float) -> None:
        """
        Args:
            steps: of each trial, that earlier sessions have made.
        """
        self.per_step = {t.trial_id: t.train_flops("exact") / t.n_steps for t in trials}
        self.left = {t.trial_id: t.n_steps for t in trials}  # steps in all, while it has not ended
        self.before, self.steps = dict(steps), dict(steps)
        self.made: deque[tuple[float, float]] = deque([(now, 0.0)])

    def see(self, steps: Mapping[str, int], ended: Iterable[str], now: float) -> None:
        """Where trials are; those that have ended leave nothing to do."""
        self.steps |= steps
        for trial_id in ended:
            self.left.pop(trial_id, None)
        made = sum((n - self.before[i]) * self.per_step[i] for i, n in self.steps.items())
        self.made.append((now, made))
        while self.made[1][0] <= now - WINDOW_S:
            self.made.popleft()

    def left_s(self) -> float | None:
        """Seconds; None while too little has been seen to tell."""
        (began, at_first), (now, made) = self.made[0], self.made[-1]
        if now - began < WARM_UP_S or made <= at_first:
            return None
        flops = sum((n - self.steps[i]) * self.per_step[i] for i, n in self.left.items())
        return flops / (made - at_first) * (now - began)


class Display:
    """Told what runs and what has ended; how far it is, is read from the store."""

    def __init__(
        self, store: Store, trials: Sequence[Trial], console: Console | None = None
    ) -> None:
        self.store, self.storage = store, Polling(store.storage)
        self.trials = {t.trial_id: t for t in trials}
        self.console = console or Console(stderr=True)
        self.bars = Progress(
            # on a narrow terminal the bar gives way first, then the name goes on in the next line
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self.rows: dict[str, TaskID] = {}  # of trials at work; "" is the sweep
        self.ended: dict[str, str] = {}
        self.began = time.monotonic()
        self.shown_at = -EVERY_S  # by this clock, which starts at 0
        # what a branch takes over from its trunk is nothing that it has to make
        steps = {t.trial_id: max(store.state(t).step, t.shared_steps) for t in trials}
        self.pace = Pace(trials, steps, self.began)
        self.last = ""
        self.open_ended = False  # the trials are candidates: how many will run is not known

    @property
    def _of(self) -> str:
        return "" if self.open_ended else f" of {len(self.trials)}"

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        line = f"[{time.monotonic() - self.began:7.1f} s] {text}"
        whole = not self.console.is_terminal  # which would break it within a number
        self.console.print(line, markup=False, highlight=False, soft_wrap=whole)

    def end(self, trial: Trial, state: str) -> None:
        """A trial has ended, or was given up; says how, if its folder does."""
        self.ended[trial.trial_id] = state
        self.pace.see({trial.trial_id: self.store.state(trial).step}, self.ended, time.monotonic())
        if (line := ended_line(self.store, trial)) is not None:
            done = sum(s in FINISHED for s in self.ended.values())
            of = f" ({done}{self._of} finished)" if state == "done" else ""
            self.say(line + of)

    def show(self, running: Iterable[str]) -> bool:
        """Look at the trials at work and show them, if the last look is long enough ago; whether it was."""
        now = time.monotonic() - self.began
        if now - self.shown_at < (LIVE_EVERY_S if self.console.is_terminal else EVERY_S):
            return False
        self.shown_at = now
        self.storage.pull()
        states = {i: self.store.state(self.trials[i]) for i in running}
        steps = {i: s.step for i, s in states.items()}
        self.pace.see(steps, self.ended, time.monotonic())
        if self.console.is_terminal:
            self._draw(states)
        elif states:
            self._line(states)
        return True

    def _left(self) -> str:
        seconds = None if self.open_ended else self.pace.left_s()
        return "" if seconds is None else f"about {duration(seconds)} left"

    def _line(self, states: Mapping[str, StateReport]) -> None:
        steps = ", ".join(
            f"{label(self.trials[i])} step {s.step:,}/{self.trials[i].n_steps:,}"
            + (f" loss {s.loss:.3f}" if isinstance(s.loss, float) else "")
            for i, s in states.items()
        )
        text = f"{len(self.ended)}{self._of} ended; {steps}"
        if text != self.last:
            self.say("; ".join(filter(None, (text, self._left()))))
            self.last = text

    def _draw(self, states: Mapping[str, StateReport]) -> None:
        # a bar that scrolls away would be drawn again and again
        fit = max(1, self.console.height - 4)
        shown = dict(list(states.items())[:fit])
        for trial_id in self.rows.keys() - shown.keys() - {""}:
            self.bars.remove_task(self.rows.pop(trial_id))
        hidden = f", {len(states) - len(shown)} more run" if len(shown) < len(states) else ""
        name, amount = self.store.name + hidden, f"{len(self.ended)}{self._of}"
        total = None if self.open_ended else len(self.trials)
        self._bar("", name, len(self.ended), total, amount, self._left())
        for trial_id, state in shown.items():
            trial = self.trials[trial_id]
            loss = f"loss {state.loss:.3f}" if isinstance(state.loss, float) else ""
            steps = f"{state.step:,}/{trial.n_steps:,}"
            self._bar(trial_id, label(trial), state.step, trial.n_steps, steps, loss)
        self.bars.refresh()

    def _bar(
        self, key: str, text: str, done: int, total: int | None, amount: str, note: str
    ) -> None:
        if key not in self.rows:
            self.rows[key] = self.bars.add_task(text, total=total, amount="", note="")
        self.bars.update(self.rows[key], description=text, completed=done, amount=amount, note=note)
