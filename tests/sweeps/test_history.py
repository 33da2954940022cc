"""Learning curves of a sweep whose trials measured their validation loss on the way."""

import json

import pytest

from analysis.figures import curves as curve_figures
from parcae_core.training.metrics import read_metrics
from sweeps.cli.sweep import load_plan
from sweeps.history import curves_of
from sweeps.records import collect, records_of
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.support.tiny import SPEC, write_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("swept")


@pytest.fixture(scope="module", params=[None, "25%"])
def trained(request, folder):
    """(every, store, trial): one trial trained to its end."""
    every, name = request.param, "plain" if request.param is None else "measuring"
    evaluation = SPEC["evaluation"] | ({} if every is None else {"every": every})
    design = {"mean_recurrence": [2], "budgets_flops": [4e8]}
    spec = write_spec(folder, name=name, evaluation=evaluation, **design)
    plan = load_plan(spec)
    store = Store(folder / "runs", plan.name)
    store.write_plan(plan, spec)
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options())
    attempt(job, plan.trials[0].trial_id, lambda report: None)
    return every, store, plan.trials[0]


def test_records_and_curves_hold_what_was_measured(trained):
    every, store, trial = trained
    result = store.result(trial)
    [at_end] = [r.val_loss for r in result.evaluation if r.n_loops == 2]
    found = curves_of(store).frame.dropna(subset=["validation"])
    frame = records_of(store)
    if every is None:
        assert list(found.validation) == [at_end]
        assert "val_history" not in frame
        return
    steps = [trial.evaluation.every * k for k in range(1, 5)]
    steps = [s for s in steps if s < trial.n_steps] + [trial.n_steps]
    assert list(found.n_tokens) == [s * trial.batch_tokens for s in steps]
    assert found.validation.iloc[-1] == at_end < found.validation.iloc[0]
    history = dict(json.loads(frame.val_history.iloc[0]))
    assert history == dict(zip(steps, found.validation, strict=True))
    assert collect(store).name == "records.parquet"
    lines = read_metrics(store.files(trial.trial_id).metrics)
    assert found.train_flops.iloc[-1] == lines[-1]["flops/paper"] == trial.train_flops("paper")


def test_the_figure_marks_every_point(trained):
    every, store, _ = trained
    found = curves_of(store)
    drawn = curve_figures.curves(found, "n_tokens").drawn
    points = drawn[drawn.panel == "val_loss"]
    assert list(points.y) == list(found.frame.validation.dropna())
    assert len(points) == 1 if every is None else len(points) >= 4
