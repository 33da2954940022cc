"""Which trial of an adaptive sweep comes next: what the store holds, through the planner, to a trial.

`Choosing` stands where `Waiting` does, so that Ray Tune's searcher (`InOrder`) and the pool of plain processes
ask it alike. It looks at the store and at design.jsonl alone, and so a new start goes on where the last ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from analysis.design.adaptive import Decision
from parcae_core.data.io import write_synced
from parcae_core.trial import Trial
from sweeps.branches import Waiting
from sweeps.decisions import decisions, end_of, estimate_data, left_out_words, words
from sweeps.design.adaptive import left_out_data, planner_of
from sweeps.design.plan import Plan, describe
from sweeps.reports import ENDED
from sweeps.storage.files import DECISIONS
from sweeps.store import Store


class Choosing(Waiting):
    """The candidates that nobody has started; `ready` decides which is next.

    Args:
        slots: asked for the trials that run side by side; no decision is made before there is a place
            for it.
    """

    def __init__(
        self,
        store: Store,
        trials: Iterable[Trial],
        say: Callable[[str], None] = lambda text: None,
        *,
        plan: Plan,
        slots: Callable[[], int] = lambda: 1,
    ) -> None:
        super().__init__(store, trials, say)
        self.plan, self.slots = plan, slots
        self.given_up: set[str] = set()  # until the next `parcae run`
        self.replicas = len(plan.spec.seeds)
        self.rows = {t.trial_id: i // self.replicas for i, t in enumerate(plan.trials)}
        self.lines = decisions(store.root)
        self.over = False
        self.next: Trial | None = None
        planner = planner_of(plan)
        # results of other sweeps are known from the start, and this one pays nothing for them; what was
        # trained here is paid for, also where its decision is lost or another design made it
        undecided = self._ended().keys() - set(self._decided())
        reused = {i for i in undecided if (r := store.report(i)) is not None and r.reused_from}
        if own := undecided - reused:
            say(
                f"{len(own)} results of {store.name} are of no decision in {DECISIONS}; their FLOPs count as spent"
            )
        theirs = planner.grid.budget_flops[[self.rows[i] for i in reused]].sum()
        self.planner = replace(planner, total_flops=planner.total_flops + float(theirs))

    def __bool__(self) -> bool:
        return not self.over

    def ready(self) -> Trial | None:
        """The next trial, once it is decided and a slot is free for it; it stays until it is removed."""
        if self.over or (self.next is not None and self.next in self.trials):
            return self.next
        waiting = {t.trial_id: t for t in self.trials}
        ended = self._ended()
        under_way = [d for d in self._decided() if d not in ended]
        for trial_id in under_way:  # of a start before this one, or put back
            if trial_id in waiting:
                self.next = waiting[trial_id]
                return self.next
        self.next = None
        if len(under_way) < max(1, self.slots()):
            decision, why = self._ask(ended)
            if decision is not None:
                self.next = self._decide(decision, waiting, ended)
            elif not under_way:
                self.end(why)
        return self.next

    def give_up(self, trial: Trial) -> None:
        self.given_up.add(trial.trial_id)

    def asked_anew(self) -> None:
        super().asked_anew()
        self.storage.pull(now=True)

    def at_end(self) -> str:
        """Why the sweep is finished, or "" while a trial is under way or one can be chosen. Decides nothing."""
        ended = self._ended()
        if any(d not in ended for d in self._decided()):
            return ""
        decision, why = self._ask(ended)
        return why if decision is None else ""

    def end(self, why: str) -> None:
        """Write down, and say, that the sweep is finished; or that it stops here, with trials given up."""
        self.over = True
        if lost := [i for i in self._decided() if i in self.given_up]:
            self.say(
                f"{self.store.name} stops here: {why}, and {len(lost)} of the trials that it chose were given "
                f"up ({', '.join(lost)}); `parcae run` again makes them go on"
            )
            return
        if end_of(self.lines) != why:
            ended = self._ended()
            self._write({"stop": why, **self._known(ended)})
        self.say(f"{self.store.name} is finished: {why}{self._in_words()}")

    def _decided(self) -> list[str]:
        named = (line.get("trial_id") for line in self.lines)
        return [i for i in named if i in self.rows]  # not of a plan before --extend

    def _ended(self) -> dict[str, float | None]:
        """Loss at the trial's own number of loops of what has ended; None where it left none, and of
        what was given up: paid for, and nothing is known of it."""
        out: dict[str, float | None] = {}
        for trial in self.plan.trials:
            if self.store.state(trial).state not in ENDED:
                if trial.trial_id in self.given_up:
                    out[trial.trial_id] = None
                continue
            result = self.store.result(trial)
            out[trial.trial_id] = result and result.loss_at(trial.mean_recurrence)
        return out

    def _done(self, ended: dict[str, float | None]) -> list[tuple[int, float]]:
        """(row, loss) of the candidates that ended with a loss."""
        return [(self.rows[i], loss) for i, loss in ended.items() if loss is not None]

    def _ask(self, ended: dict[str, float | None]) -> tuple[Decision | None, str]:
        """The planner's next choice, or why there is none now."""
        running = [self.rows[i] for i in self._decided() if i not in ended]
        lost = [self.rows[i] for i, loss in ended.items() if loss is None]
        found, why = self.planner.next(self._done(ended), running, 1, lost)
        return (found[0] if found else None), why

    def _decide(self, decision: Decision, waiting: dict[str, Trial], ended) -> Trial:
        first = decision.row * self.replicas
        mine = self.plan.trials[first : first + self.replicas]
        trial = next(t for t in mine if t.trial_id in waiting)
        self._write(
            {
                "trial_id": trial.trial_id,
                "mean_recurrence": trial.mean_recurrence,
                "budget_flops": trial.budget_flops,
                "seed": trial.seed,
                "reason": decision.reason,
                **self._known(ended),
            }
        )
        said = f"next {describe(trial)}, seed {trial.seed}: {decision.reason}"
        self.say(said + self._in_words())
        return trial

    def _known(self, ended: dict[str, float | None]) -> dict[str, Any]:
        """What a decision rests on: runs that are no part of the fit, if any, and the target by the others."""
        done = self._done(ended)
        out = left_out_data(self.planner, done)
        found = self.planner.estimate(done)
        estimate = found and estimate_data(self.planner.target, found)
        return ({"left_out": out} if out else {}) | {"estimate": estimate}

    def _in_words(self) -> str:
        now = self.lines[-1]["estimate"]
        return "" if now is None else f"; {words(now)}"

    def _write(self, line: dict[str, Any]) -> None:
        """A decision is on the disk before anything is started on it."""
        if end_of(self.lines):
            self.lines.pop()
        before = self.lines[-1].get("left_out", ()) if self.lines else ()
        self.lines.append({"n": len(self.lines) + 1} | line)
        known = {(run["mean_recurrence"], run["budget_flops"], run["loss"]) for run in before}
        for run, sentence in zip(line.get("left_out", ()), left_out_words(line), strict=True):
            if (run["mean_recurrence"], run["budget_flops"], run["loss"]) not in known:
                self.say(sentence)
        path = self.store.root / DECISIONS
        write_synced(path, "".join(json.dumps(x) + "\n" for x in self.lines))
        self.store.storage.push(path)
