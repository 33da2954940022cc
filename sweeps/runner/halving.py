"""`scheduler: asha` on the driver's side: Ray Tune's ASHAScheduler decides, and the trial ends itself.

Tune would end a trial's worker, which could leave neither checkpoint nor result. The decision goes into
the trial's folder instead (`sweeps.runner.rungs`), and holds however often the trial is started again.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from parcae_core.trial import Trial
from sweeps.runner.rungs import FACTOR, N_RUNGS, loss_at, rungs_of
from sweeps.storage.files import write_json
from sweeps.store import Store


class Halving(FIFOScheduler):
    """One ASHAScheduler for each set of trials that differ in the optimiser's settings alone.

    Trials of an earlier `run` count by what their metrics hold, so that a second start decides as the
    first would have.
    """

    metric = None  # of Tune's: nothing is required of the last word of a trial

    def __init__(self, store: Store, trials: list[Trial]) -> None:
        super().__init__()
        self.store = store
        self.trials = {t.trial_id: t for t in trials}
        self.by_peers: dict[str, ASHAScheduler] = {}
        for trial in store.stored_trials():
            self._remember(trial)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it for a restore that we never ask for; a store cannot be."""
        return {k: v for k, v in vars(self).items() if k != "store"}

    def _peers(self, trial: Trial) -> ASHAScheduler:
        key = json.dumps({k: v for k, v in trial.identity().items() if k != "optim"})
        if key not in self.by_peers:
            self.by_peers[key] = ASHAScheduler(
                time_attr="step",
                metric="loss",
                mode="min",
                max_t=trial.n_steps,
                grace_period=trial.n_steps / FACTOR**N_RUNGS,
                reduction_factor=FACTOR,
                stop_last_trials=False,
            )
        return self.by_peers[key]

    def _remember(self, trial: Trial) -> None:
        """Tell what a trial showed at the rungs that it will not pass again."""
        files = self.store.files(trial.trial_id)
        report = self.store.report(trial.trial_id)
        # A driver's view of an object store holds no checkpoints; after `retry` a folder has no report
        made = max(files.newest_step(), 0 if report is None else report.checkpoint_step)
        if self.store.result(trial) is not None:
            made = trial.n_steps
        if made < rungs_of(trial)[0]:
            return
        self.store.storage.pull([files.metrics])
        before = SimpleNamespace(trial_id=trial.trial_id)
        self._peers(trial).on_trial_add(None, before)
        for rung in rungs_of(trial):
            if rung <= made and (found := loss_at(files.metrics, rung)) is not None:
                said = {"step": found[0], "loss": found[1]}
                self._peers(trial).on_trial_result(None, before, said)

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self._peers(self.trials[trial.config["trial_id"]]).on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A trial is at a rung: let it go on, or ask it to end."""
        planned = self.trials[trial.config["trial_id"]]
        asha = self._peers(planned)
        if asha.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
            step, loss = result["step"], result["loss"]
            reason = (
                f"step {step} of {planned.n_steps}: asha stopped it, its loss {loss:.4f} is not among the "
                "best third of those that came here before at another learning rate"
            )
            path = self.store.files(planned.trial_id).halt
            write_json(path, {"step": step, "loss": loss, "reason": reason})
            self.store.storage.push(path)
        return TrialScheduler.CONTINUE
