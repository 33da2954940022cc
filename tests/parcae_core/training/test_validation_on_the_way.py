"""`evaluation.every`: validation loss during training changes nothing but what is known of it."""

import dataclasses
import json
import time

import pytest
import torch

from parcae_core.checkpoints.native import newest_checkpoint
from parcae_core.result import TrainResult
from parcae_core.training.metrics import Meter
from parcae_core.training.train import train
from tests.support.training import EXECUTION, metrics, tiny_trial, write_data

TIMES = {"perf/tokens_per_s", "perf/flops_per_s", "perf/data_wait_share", "perf/wall_s"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def trial_that_measures(every, **changes):
    trial = tiny_trial(**changes)
    return dataclasses.replace(trial, evaluation=dataclasses.replace(trial.evaluation, every=every))


def run(trial, data_dir, run_dir, on_report=None, **execution):
    settings = dataclasses.replace(EXECUTION, **execution)
    return train(trial, data_dir=data_dir, run_dir=run_dir, on_report=on_report, execution=settings)


def comparable(lines, *left_out):
    return [{k: v for k, v in x.items() if k not in TIMES | {*left_out}} for x in lines]


@pytest.mark.parametrize("transformer", [False, True])
def test_it_changes_neither_weights_nor_flops_nor_losses(data_dir, tmp_path, transformer):
    plain, measuring = (trial_that_measures(n, transformer=transformer) for n in (None, 5))
    assert plain.trial_id == tiny_trial(transformer=transformer).trial_id != measuring.trial_id
    without = run(plain, data_dir, tmp_path / "a", log_every_steps=1)
    result = run(measuring, data_dir, tmp_path / "b", log_every_steps=1)
    lines = metrics(tmp_path / "b")
    assert comparable(lines, "val/loss") == comparable(metrics(tmp_path / "a"))
    assert [x["step"] for x in lines if "val/loss" in x] == [5, 10, 12]
    assert result.val_history == tuple((x["step"], x["val/loss"]) for x in lines if "val/loss" in x)
    assert result.evaluation == without.evaluation
    [at_end] = [r.val_loss for r in result.evaluation if r.n_loops == plain.mean_recurrence]
    assert result.val_history[-1] == (12, at_end)
    assert result.val_history[0][1] > at_end + 0.1
    assert (result.train_flops, result.train_flops_sampled) == (
        without.train_flops, without.train_flops_sampled,
    )  # fmt: skip
    a, b = (
        newest_checkpoint(tmp_path / n / "checkpoints", t)
        for n, t in (("a", plain), ("b", measuring))
    )
    assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)
    assert TrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("died_at", [6, 8, 9])
def test_a_kill_neither_loses_a_point_nor_writes_it_twice(data_dir, tmp_path, died_at):
    trial = trial_that_measures(2, n_steps=11)
    whole = run(trial, data_dir, tmp_path / "whole", log_every_steps=3)

    def die(line):
        if line["step"] == died_at:
            raise Killed

    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        run(trial, data_dir, cut, die, log_every_steps=3, checkpoint_every_steps=5)
    resumed = run(trial, data_dir, cut, log_every_steps=3)
    assert [step for step, _ in whole.val_history] == [2, 4, 6, 8, 10, 11]
    assert resumed.val_history == whole.val_history
    assert comparable(metrics(cut)) == comparable(metrics(tmp_path / "whole"))


def test_a_loss_that_is_not_finite_on_the_way_is_no_point_and_ends_nothing(
    data_dir, tmp_path, monkeypatch
):
    from parcae_core.training import train as train_module

    real, calls = train_module.evaluate, []

    def broken_once(*args, **kwargs):
        rows = real(*args, **kwargs)
        calls.append(rows)
        return (dataclasses.replace(rows[0], val_loss=float("nan")),) if len(calls) == 1 else rows

    monkeypatch.setattr(train_module, "evaluate", broken_once)
    result = run(trial_that_measures(6), data_dir, tmp_path)
    assert (result.status, [step for step, _ in result.val_history]) == ("done", [12])


def test_the_time_of_a_measurement_is_in_no_rate():
    meter = Meter()
    with meter.paused():
        time.sleep(0.2)
    meter.add(tokens=100, flops=1.0, wait_s=0.0)
    assert meter.read(None)["perf/tokens_per_s"] > 100 / 0.2
