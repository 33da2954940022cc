"""Trunks on a real Ray cluster, whose worker dies before it has handed anything over."""

import os
import signal

import pytest

from parcae_core.training.train import train
from sweeps.cli.sweep import load_plan
from sweeps.records import records_of
from sweeps.runner.driver import Options, run
from sweeps.store import Store
from tests.support.tiny import write_spec

BUDGETS = {"budgets_flops": [1e8, 2e8, 4e8], "mean_recurrence": [1, 2]}


def dies_once(trial, *, run_dir, on_report, **given):
    """Trains; a trunk without a parent dies one step before its first branch leaves."""

    def report(line):
        on_report(line)
        first = trial.parent is None and not (run_dir / "died").exists()
        if first and line["step"] == trial.constant_steps - 1:
            (run_dir / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return train(trial, run_dir=run_dir, on_report=report, **given)


@pytest.mark.slow
def test_ray_starts_branches_after_their_trunks_though_these_die(tmp_path):
    spec = write_spec(tmp_path, name="trunks", trunks=True, **BUDGETS)
    plan = load_plan(spec)
    store = Store(tmp_path / "runs", plan.name)
    assert run(plan, store, spec, options=Options(cpus=2, train=dies_once)).complete
    assert len(list(store.root.glob("*/died"))) == 2
    assert sorted(store.state(t).lost_workers for t in plan.trials) == [0, 0, 0, 0, 1, 1]
    assert [store.result(t).shared_steps for t in plan.trials] == [
        t.shared_steps for t in plan.trials
    ]

    phased = {"optim": {"weight_decay_falls": "cooldown"}}
    separate = write_spec(tmp_path, name="separate", **phased, **BUDGETS)
    alone = Store(tmp_path / "elsewhere", "separate")
    assert run(load_plan(separate), alone, separate, options=Options(ray=False, cpus=2)).complete
    of_both = [records_of(s).set_index(["trial_id", "n_loops"]) for s in (store, alone)]
    assert of_both[0].val_loss.equals(of_both[1].val_loss)
    assert of_both[0].train_flops_paper.equals(of_both[1].train_flops_paper)
