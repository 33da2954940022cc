"""A trial on the generated corpus: what is known of its loss stands in the records beside it."""

import json
import math

from analysis.table import load
from parcae_core.data.state_reveals import StateReveals
from sweeps.cli.sweep import load_plan
from sweeps.records import collect
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.support.tiny import write_spec


def test_the_records_hold_the_floor_and_the_loss_by_gap(tmp_path):
    spec = write_spec(
        tmp_path,
        data={"corpus": {"name": "state-reveals", "longest_gap": 8}},
        mean_recurrence=[2],
        budgets_flops=[4e8],
        evaluation={"loops": [1, 2, 4], "n_sequences": 64},
    )
    plan = load_plan(spec)
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options())
    attempt(job, plan.trials[0].trial_id, lambda outcome: None)

    frame = load.load(collect(store)).frame
    corpus = StateReveals(longest_gap=8)
    assert set(frame.corpus) == {"state-reveals(longest_gap=8)"}
    assert set(frame.loss_floor) == {corpus.loss(16)}
    assert json.loads(frame.loss_by_reach[0])["4"] == corpus.loss(16, 4)
    assert json.loads(frame.floor_by_label[0])["8"] == 0.0  # the longest gap ends for sure
    row = frame[frame.n_loops == 4].iloc[0]
    by_gap = {int(k): pair for k, pair in json.loads(row.val_loss_by_label).items()}
    assert list(by_gap) == list(range(1, 9))
    # All tokens are states that end a gap, or actions and first states, which have no label
    labelled = sum(n for n, _ in by_gap.values())
    assert 100 < labelled < row.val_tokens == 64 * 16
    assert all(nats > 0 for _, nats in by_gap.values())
    assert row.val_loss > row.loss_floor


def test_text_has_no_floor_and_no_labels(tmp_path):
    spec = write_spec(tmp_path, mean_recurrence=[2], budgets_flops=[4e8])
    plan = load_plan(spec)
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options())
    attempt(job, plan.trials[0].trial_id, lambda outcome: None)
    frame = load.load(collect(store)).frame
    assert frame.corpus[0] == str(tmp_path / "text")
    assert frame[["loss_floor", "loss_by_reach", "val_loss_by_label"]].isna().all(axis=None)
    assert 0 < frame.val_loss.iloc[0] < math.log(264)  # bytes: better than a guess
