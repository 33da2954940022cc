"""`scheduler: asha` on a real private cluster."""

import pytest

from analysis.table.load import from_records
from sweeps.cli.sweep import load_plan
from sweeps.records import records_of
from sweeps.runner.driver import Options, run
from sweeps.store import Store
from tests.support.tiny import write_spec

pytestmark = pytest.mark.slow


def test_rates_that_learn_less_end_early_and_the_best_trains_to_its_end(tmp_path):
    spec = write_spec(
        tmp_path,
        design="grid",
        budgets_flops=None,
        mean_recurrence=None,
        base={"n_tokens": 64 * 600, "mean_recurrence": 2},
        axes={"optim.lr": [8e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6]},
        scheduler="asha",
    )
    plan = load_plan(spec)
    store = Store(tmp_path / "runs", plan.name)
    outcome = run(plan, store, spec, options=Options(cpus=1))
    states = [outcome.states[i] for i in plan.trial_ids]
    assert states[0] == "done"  # first, and better than all that follow
    assert states[1:] == ["stopped"] * 5
    assert outcome.complete
    table = records_of(store)
    stopped = table[table.status == "stopped"]
    assert set(stopped.n_tokens) == {69 * 64}  # the first line past a ninth of 600 steps
    assert stopped.status_reason.str.contains("asha stopped it").all()
    read = from_records(table, "records")
    assert [(d.reason, d.n_rows) for d in read.dropped] == [("the run was stopped early", 5)]
    again = run(plan, store, spec, options=Options(cpus=1))
    assert again.states == outcome.states
