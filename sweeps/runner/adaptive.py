"""Which trial of an adaptive sweep comes next: what the store holds, through the planner, to a trial.

`Choosing` stands where `Waiting` does, so that Ray Tune's searcher (`InOrder`) and the pool of plain processes
ask it alike. It looks at the store and at design.jsonl alone, and so a new start goes on where the last ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from parcae_core.data.io import write_synced
from parcae_core.trial import Trial
from sweeps.branches import Waiting
from sweeps.design.adaptive import FILE, decisions, estimate_data, losses_of, planner_of
from sweeps.design.plan import Plan, describe
from sweeps.reports import ENDED
from sweeps.store import Store


class Choosing(Waiting):
    """The candidates that nobody has started; `ready` decides which is next.

    Args:
        slots: trials that run side by side; no decision is made before there is a place for it.
    """

    def __init__(
        self,
        store: Store,
        trials: Iterable[Trial],
        say: Callable[[str], None] = lambda text: None,
        *,
        plan: Plan,
        slots: int,
    ) -> None:
        super().__init__(store, trials, say)
        self.plan, self.slots = plan, max(1, slots)
        self.planner = planner_of(plan)
        self.replicas = len(plan.spec.seeds)
        self.lines = decisions(store.root)
        self.over = False
        self.next: Trial | None = None

    def __bool__(self) -> bool:
        return not self.over

    def ready(self) -> Trial | None:
        """The next trial, once it is decided and a slot is free for it; it stays until it is removed."""
        if self.over or (self.next is not None and self.next in self.trials):
            return self.next
        waiting = {t.trial_id: t for t in self.trials}
        ended = self._ended()
        open_ = [d for d in self._decided() if d not in ended]
        for trial_id in open_:  # of a start before this one, or put back
            if trial_id in waiting:
                self.next = waiting[trial_id]
                return self.next
        if len(open_) >= self.slots:
            return None
        self.next = self._decide(waiting, ended, bool(open_))
        return self.next

    def asked_anew(self) -> None:
        super().asked_anew()
        self.storage.pull(now=True)

    def _decided(self) -> list[str]:
        return [line["trial_id"] for line in self.lines if "trial_id" in line]

    def _ended(self) -> dict[str, float | None]:
        """Loss at the trial's own number of loops of what has ended; None where it left none."""
        out: dict[str, float | None] = {}
        for trial in self.plan.trials:
            if self.store.state(trial).state not in ENDED:
                continue
            result = self.store.result(trial)
            losses = {r.n_loops: r.val_loss for r in result.evaluation} if result else {}
            done = result is not None and result.status == "done"
            out[trial.trial_id] = losses.get(trial.mean_recurrence) if done else None
        return out

    def _decide(self, waiting: dict[str, Trial], ended, busy: bool) -> Trial | None:
        rows = {t.trial_id: i // self.replicas for i, t in enumerate(self.plan.trials)}
        losses = {i: loss for i, loss in ended.items() if loss is not None}
        done = losses_of(self.plan.trials, losses, self.replicas)
        running = [rows[i] for i in self._decided() if i not in ended]
        lost = [rows[i] for i, loss in ended.items() if loss is None]
        found, why = self.planner.next(done, running, 1, lost)
        if not found:
            if not busy:
                self.over = True
                self._write({"stop": why, "estimate": self._estimate(done)})
                self.say(f"the design ends: {why}{self._in_words()}")
            return None
        row = found[0].row
        mine = self.plan.trials[row * self.replicas : (row + 1) * self.replicas]
        trial = next(t for t in mine if t.trial_id in waiting)
        self._write(
            {
                "trial_id": trial.trial_id,
                "mean_recurrence": trial.mean_recurrence,
                "budget_flops": trial.budget_flops,
                "seed": trial.seed,
                "reason": found[0].reason,
                "estimate": self._estimate(done),
            }
        )
        self.say(f"next {describe(trial)}, seed {trial.seed}: {found[0].reason}{self._in_words()}")
        return trial

    def _estimate(self, done) -> dict[str, Any] | None:
        return estimate_data(self.planner.estimate(done), self.planner.target)

    def _in_words(self) -> str:
        now = self.lines[-1]["estimate"]
        if now is None:
            return ""
        return f"; {now['target']} {now['value']:.4g} [{now['low']:.4g}, {now['high']:.4g}]"

    def _write(self, line: dict[str, Any]) -> None:
        """A decision is on the disk before anything is started on it."""
        if self.lines and "stop" in self.lines[-1]:
            self.lines.pop()
        self.lines.append({"n": len(self.lines) + 1} | line)
        path = self.store.root / FILE
        write_synced(path, "".join(json.dumps(x) + "\n" for x in self.lines))
        self.store.storage.push(path)
