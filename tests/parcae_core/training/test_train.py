"""One run: as planned, resumable bit for bit, and ending in a result whatever happens."""

import dataclasses
import itertools
import json
import math
import signal
import threading

import numpy as np
import pytest
import torch

from parcae_core.checkpoints.load import load_model
from parcae_core.checkpoints.native import newest_checkpoint
from parcae_core.data.prefetch import Prefetch
from parcae_core.data.reader import RowReader
from parcae_core.depth import DepthDraw, FixedDepth, PoissonDepth
from parcae_core.device import resolve_device
from parcae_core.errors import OutOfMemory, UserError
from parcae_core.kernels import dispatch
from parcae_core.model.parcae import build_model
from parcae_core.result import Execution, Interrupted, TrainResult
from parcae_core.training import metrics as metrics_module
from parcae_core.training import train as train_module
from parcae_core.training.batching import StepFlops, depths_of_step, partition, portions
from parcae_core.training.evaluate import evaluate
from parcae_core.training.gradient import drawn_on, local_gradient
from parcae_core.training.train import train
from parcae_core.trial import OptimConfig
from tests.support.interrupt import StopFlag, stop_on_signal
from tests.support.training import CONTEXT, EXECUTION, metrics, tiny_trial, write_data

TIMES = {"perf/tokens_per_s", "perf/flops_per_s", "perf/data_wait_share", "perf/wall_s"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def run(trial, data_dir, run_dir, on_report=None, **execution):
    settings = dataclasses.replace(EXECUTION, **execution)
    return train(trial, data_dir=data_dir, run_dir=run_dir, on_report=on_report, execution=settings)


def stop_after(n_steps):
    """A stop flag that asks to stop once `n_steps` updates have been made."""
    asked = iter(range(n_steps + 1))
    return lambda: next(asked) == n_steps


def final_weights(run_dir, trial):
    return newest_checkpoint(run_dir / "checkpoints", trial).weights


def timeless(lines):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


# ---- as planned --------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"transformer": True}, {"n_steps": 1}])
def test_steps_tokens_and_flops_spent_are_the_planned_ones(
    data_dir, tmp_path, monkeypatch, changes
):
    updates = []
    update = train_module.Optimizer.update
    monkeypatch.setattr(
        train_module.Optimizer,
        "update",
        lambda self, step: (updates.append(step), update(self, step)),
    )
    trial = tiny_trial(**changes)
    result = run(trial, data_dir, tmp_path)
    assert updates == list(range(trial.n_steps))
    assert result.status == "done"
    assert result.step == trial.n_steps
    assert result.n_tokens == trial.n_tokens
    assert result.train_flops == trial.cost.train_flops
    assert [row.n_loops for row in result.evaluation] == list(trial.evaluation.loops)
    assert all(0 < row.val_loss < 10 for row in result.evaluation)
    drawn = [depths_of_step(trial, s).total.sum() for s in range(trial.n_steps)]
    assert result.core_sequence_steps_ideal == (0 if trial.depth is None else sum(drawn))
    assert result.core_sequence_steps == result.core_sequence_steps_ideal


def test_flops_of_the_drawn_depths_meet_the_exact_rule_in_the_mean():
    trial = tiny_trial()
    flops = StepFlops(trial)
    for total, grad in ((1, 1), (2, 1), (5, 3)):
        fixed = dataclasses.replace(
            trial, depth=FixedDepth(mean_recurrence=total, mean_backprop_depth=grad)
        )
        expected = fixed.train_flops("exact") / trial.n_steps
        assert flops(depths_of_step(fixed, 0)) == pytest.approx(expected, rel=1e-12)
    many = [flops(depths_of_step(trial, s)) for s in range(4000)]
    error = np.std(many) / math.sqrt(len(many))
    assert abs(np.mean(many) - trial.train_flops("exact") / trial.n_steps) < 4 * error
    transformer = tiny_trial(transformer=True)
    spent = StepFlops(transformer)(depths_of_step(transformer, 0))
    assert spent == pytest.approx(transformer.train_flops("exact") / transformer.n_steps, rel=1e-12)


def test_the_model_learns(data_dir, tmp_path):
    result = run(tiny_trial(n_steps=150), data_dir, tmp_path)
    at_start = metrics(tmp_path)[0]["train/loss"]
    assert abs(at_start - math.log(264)) < 1.0
    assert result.evaluation[1].val_loss < at_start - 2.5


def test_a_line_of_metrics_holds_what_the_module_says(data_dir, tmp_path):
    reported = []
    trial = tiny_trial()
    run(trial, data_dir, tmp_path, reported.append, log_every_steps=5, peak_flops_per_s=1e12)
    lines = metrics(tmp_path)
    assert lines == reported
    assert [line["step"] for line in lines] == [1, 5, 10, 12]
    text = metrics_module.__doc__
    for key in lines[-1]:
        numbered = key.startswith(("flops/", "stability/loop_norm_"))
        assert key in text or numbered, f"{key} is not in the module's docstring"
    last = lines[-1]
    assert last["n_tokens"] == trial.n_tokens
    assert {r: last[f"flops/{r}"] for r in ("paper", "code", "exact")} == trial.cost.train_flops
    assert last["depth/mean"] == depths_of_step(trial, 11).total.mean()
    assert last["depth/executed_over_ideal"] == 1.0
    assert last["perf/mfu"] == pytest.approx(last["perf/flops_per_s"] / 1e12)
    assert 0 < last["stability/spectral_radius"] < 1
    assert last["stability/loop_norm_01"] > 0
    assert last["optim/muon_lr"] == pytest.approx(8e-3 / 6)
    assert json.loads(json.dumps(last)) == last


def test_the_result_says_what_ran(data_dir, tmp_path):
    result = run(tiny_trial(n_steps=1), data_dir, tmp_path)
    assert (result.kernels, result.cross_entropy, result.attention) == ("torch", "torch", "flash")
    assert result.compiled is False


def test_kernels_that_cannot_run_are_refused(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(UserError, match=r"impl='triton' .* on cpu; use impl='torch'"):
        run(tiny_trial(), data_dir, tmp_path, impl="triton")


def test_a_run_with_kernels_trains_the_same_model_to_rounding(data_dir, tmp_path, monkeypatch):
    if dispatch.triton is None or not dispatch.INTERPRETED:
        pytest.skip("kernels do not run on this machine's CPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    trial = tiny_trial(n_steps=2, batch_sequences=4)
    plain, fused = (run(trial, data_dir, tmp_path / i, impl=i) for i in ("torch", "triton"))
    assert fused.kernels == "triton"
    assert fused.trial_id == plain.trial_id
    losses = [[row.val_loss for row in r.evaluation] for r in (plain, fused)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # float32, 2 updates


def test_the_result_survives_json(data_dir, tmp_path):
    result = run(tiny_trial(), data_dir, tmp_path)
    assert TrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    with pytest.raises(ValueError, match="unknown key 'other'"):
        TrainResult.from_dict(result.to_dict() | {"other": 1})


def test_the_execution_changes_no_result(data_dir, tmp_path):
    """Logging, checkpoints, progress and reports leave the weights alone."""
    trial = tiny_trial()
    run(trial, data_dir, tmp_path / "a", log_every_steps=100, checkpoint_every_s=None)
    run(trial, data_dir, tmp_path / "b", log_every_steps=1, checkpoint_every_steps=1)
    a, b = (final_weights(tmp_path / name, trial) for name in "ab")
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"depth": PoissonDepth(mean_recurrence=4, mean_backprop_depth=2)},
        {"optim": OptimConfig(grad_clip=0.1)},
        {"n_steps": 11},
        {"batch_sequences": 6},
        {"precision": "bfloat16"},
    ],
)
def test_what_belongs_to_the_trial_changes_the_weights(data_dir, tmp_path, changes):
    trials = (tiny_trial(), tiny_trial(**changes))
    weights = []
    for i, trial in enumerate(trials):
        run(trial, data_dir, tmp_path / str(i))
        weights.append(final_weights(tmp_path / str(i), trial))
    assert not torch.equal(weights[0]["embedding.weight"], weights[1]["embedding.weight"])


# ---- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"transformer": True}, {"precision": "bfloat16"}])
def test_ten_steps_equal_five_a_stop_and_five_bit_for_bit(data_dir, tmp_path, changes):
    trial = tiny_trial(n_steps=10, **changes)
    whole = run(trial, data_dir, tmp_path / "whole", log_every_steps=1)
    with pytest.raises(Interrupted, match="stopped after 5 of 10 steps"):
        run(trial, data_dir, tmp_path / "cut", log_every_steps=1, stop_requested=stop_after(5))
    cut = run(trial, data_dir, tmp_path / "cut", log_every_steps=1)
    assert cut.evaluation == whole.evaluation
    assert (cut.n_resumed, whole.n_resumed) == (1, 0)
    for field in ("step", "n_tokens", "final_train_loss", "train_flops", "train_flops_sampled"):
        assert getattr(cut, field) == getattr(whole, field)
    assert timeless(metrics(tmp_path / "cut")) == timeless(metrics(tmp_path / "whole"))
    a, b = (newest_checkpoint(tmp_path / n / "checkpoints", trial) for n in ("whole", "cut"))
    for saved in ("weights", "optimizer"):
        one, other = getattr(a, saved), getattr(b, saved)
        assert all(torch.equal(one[n], other[n]) for n in one)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def test_steps_after_the_last_checkpoint_are_made_and_logged_again(data_dir, tmp_path):
    trial = tiny_trial(n_steps=10)
    whole = run(trial, data_dir, tmp_path / "whole", log_every_steps=1)

    def die_at_nine(line):
        if line["step"] == 9:
            raise Killed

    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        run(trial, data_dir, cut, die_at_nine, log_every_steps=1, checkpoint_every_steps=3)
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "tra')  # a line the kill cut short
    resumed = run(trial, data_dir, cut, log_every_steps=1)
    assert resumed.evaluation == whole.evaluation
    assert timeless(metrics(cut)) == timeless(metrics(tmp_path / "whole"))


def test_a_finished_run_is_only_evaluated_again(data_dir, tmp_path):
    trial = tiny_trial()
    first = run(trial, data_dir, tmp_path)
    reports = []
    second = run(trial, data_dir, tmp_path, reports.append)
    assert second.evaluation == first.evaluation
    assert second.final_train_loss == first.final_train_loss
    assert second.n_resumed == 0
    assert reports == []
    assert len(metrics(tmp_path)) == trial.n_steps


def test_a_stop_before_the_first_step_leaves_no_checkpoint(data_dir, tmp_path):
    flag = StopFlag()
    flag.request()
    with pytest.raises(Interrupted, match="stopped after 0 of 12"):
        run(tiny_trial(), data_dir, tmp_path, stop_requested=flag)
    assert newest_checkpoint(tmp_path / "checkpoints", tiny_trial()) is None


def test_sigterm_saves_and_the_next_start_goes_on(data_dir, tmp_path):
    trial = tiny_trial()
    whole = run(trial, data_dir, tmp_path / "whole")

    def terminate(line):
        if line["step"] == 7:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop, pytest.raises(Interrupted):
        run(trial, data_dir, tmp_path / "cut", terminate, stop_requested=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert newest_checkpoint(tmp_path / "cut" / "checkpoints", trial).step == 7
    assert run(trial, data_dir, tmp_path / "cut").evaluation == whole.evaluation


def test_a_run_in_another_thread_can_be_stopped(data_dir, tmp_path):
    flag, ended = StopFlag(), []

    def in_thread():
        try:
            run(tiny_trial(), data_dir, tmp_path, lambda line: flag.request(), stop_requested=flag)
        except Interrupted as interrupted:
            ended.append(str(interrupted))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(timeout=30)
    assert ended == ["stopped after 1 of 12 steps"]


def test_the_trained_model_is_read_back_and_gives_the_reported_loss(data_dir, tmp_path):
    trial = tiny_trial()
    result = run(trial, data_dir, tmp_path)
    trained = load_model(tmp_path)
    assert trained.origin == f"trial {trial.trial_id} at step {trial.n_steps} of {trial.n_steps}"
    rows = evaluate(
        trained.model,
        RowReader(data_dir, "val", data_seed=0),
        loops=(3,),
        n_sequences=trial.evaluation.n_sequences,
        batch_sequences=trial.evaluation.n_sequences,
        seed=trial.seed,
    )
    assert rows[0].val_loss == result.evaluation[1].val_loss
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no whole checkpoint"):
        load_model(tmp_path / "empty")


# ---- portions and shares -----------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8])
@pytest.mark.parametrize("transformer", [False, True])
def test_the_gradient_does_not_depend_on_the_micro_batch(data_dir, micro_batch, transformer):
    trial = tiny_trial(transformer=transformer)
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 264, (8, CONTEXT + 1)))
    found = []
    for size in (8, micro_batch):
        model = build_model(trial.model, seed=0).double()
        for p in model.parameters():  # output projections start at zero and would hide paths
            p.data.add_(0.02)
        local = local_gradient(
            model,
            trial,
            rows=rows,
            draw=depths_of_step(trial, 3),
            share=np.arange(8),
            micro_batch=size,
            step=3,
        )
        found.append((local.loss.item(), [p.grad for p in model.parameters()]))
    (loss_a, grads_a), (loss_b, grads_b) = found
    # float64 throughout; sums of different order, over gradients of order 1
    assert loss_a == pytest.approx(loss_b, rel=1e-12)
    for a, b in zip(grads_a, grads_b, strict=True):
        assert a.abs().max() > 0
        assert (a - b).abs().max() < 1e-12


def test_states_drawn_on_a_device_belong_to_the_sequence_and_the_step():
    trial, cpu = tiny_trial(), torch.device("cpu")
    model = build_model(trial.model, seed=0)
    states = drawn_on(cpu, model, range(8), trial, step=3)
    assert states.shape == (8, CONTEXT, 16)
    assert torch.equal(drawn_on(cpu, model, [5, 2], trial, step=3), states[[5, 2]])
    others = [
        drawn_on(cpu, model, range(8), trial, step=4),
        drawn_on(cpu, model, range(8), dataclasses.replace(trial, seed=1), step=3),
    ]
    for other in others:
        assert not torch.equal(other[0], states[0])
    assert not torch.equal(states[0], states[1])


def test_a_feed_gives_each_step_its_own_rows_in_any_order(data_dir):
    reader = RowReader(data_dir, "train", data_seed=0)
    feed = Prefetch(reader, 4, last=10, pinned=False)
    for step in (0, 1, 2, 7, 8, 3, 9):
        rows, epoch, wait_s = feed.get(step)
        assert np.array_equal(rows, reader.batch(step, 4).ids)
        assert epoch == reader.batch(step, 4).epoch
        assert wait_s >= 0
    feed.close()


def test_an_error_while_reading_ahead_reaches_the_caller():
    class Broken:
        def batch(self, step, n):
            raise OSError("gone")

    feed = Prefetch(Broken(), 4, last=10, pinned=False)
    with pytest.raises(OSError, match="gone"):
        feed.get(0)
    feed.close()


def test_micro_batches_train_the_same_model_to_rounding(data_dir, tmp_path):
    trial = tiny_trial()
    losses = [
        run(trial, data_dir, tmp_path / str(size), micro_batch_sequences=size)
        .evaluation[1]
        .val_loss
        for size in (None, 3)
    ]
    # float32 rounding after 12 updates; another depth or state would differ in the second digit
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_portions_hold_similar_depths_and_every_sequence_once():
    draw = PoissonDepth(mean_recurrence=6, mean_backprop_depth=3).sample(64, seed=0, step=0)
    parts = portions(draw, np.arange(64), 10)
    assert [p.size for p in parts] == [10] * 6 + [4]
    assert sorted(np.concatenate(parts)) == list(range(64))
    depths = [draw.total[p] for p in parts]
    for deeper, shallower in itertools.pairwise(depths):
        assert deeper.min() >= shallower.max()


@pytest.mark.parametrize("n_workers", [1, 2, 4, 8])
def test_processes_get_equally_many_sequences_and_nearly_equal_work(n_workers):
    scheme = PoissonDepth(mean_recurrence=8, mean_backprop_depth=4)
    spread = []
    for step in range(50):
        draw = scheme.sample(64, seed=0, step=step)
        shares = partition(draw, n_workers)
        assert sorted(np.concatenate(shares)) == list(range(64))
        assert {s.size for s in shares} == {64 // n_workers}
        work = [(draw.no_grad[s] + 3 * draw.grad[s]).sum() for s in shares]
        spread.append(max(work) / np.mean(work) - 1)
    # a whole loop step is the finest difference there is: 3 in 130 for 8 processes of 8 sequences
    assert np.mean(spread) < 0.02


def test_a_batch_that_does_not_divide_is_refused():
    draw = DepthDraw(no_grad=np.zeros(6, dtype=np.int64), grad=np.ones(6, dtype=np.int64))
    with pytest.raises(UserError, match="batch_sequences=6 does not divide among 4 processes"):
        partition(draw, 4)


# ---- divergence --------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(data_dir, tmp_path, monkeypatch):
    gather = train_module.all_reduce_gradient

    def poisoned(model, local, workers):
        out = gather(model, local, workers)
        return (
            dataclasses.replace(out, loss=math.nan) if len(calls) == 4 else calls.append(0) or out
        )

    calls = []
    monkeypatch.setattr(train_module, "all_reduce_gradient", poisoned)
    result = run(tiny_trial(), data_dir, tmp_path)
    assert result.status == "diverged"
    assert (result.step, result.reason) == (4, "step 4: the loss is nan")
    assert result.evaluation == ()
    assert result.n_tokens == 4 * tiny_trial().batch_tokens
    assert math.isfinite(result.final_train_loss)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]
    assert TrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_an_unstable_model_really_diverges_and_the_stable_one_does_not(data_dir, tmp_path):
    """Concatenation at a rate far too high, beside the constrained injection at the same rate."""
    results = {}
    for injection in ("concat", "diagonal"):
        trial = tiny_trial(
            n_steps=40,
            model={"injection": injection},
            depth=FixedDepth(mean_recurrence=24, mean_backprop_depth=24),
            optim=OptimConfig(adamw_lr=0.3, cooldown_share=0.0),
        )
        results[injection] = run(trial, data_dir, tmp_path / injection)
    assert results["concat"].status == "diverged"
    assert results["concat"].step < 40
    assert results["diagonal"].status == "done"


def test_a_gradient_that_is_not_finite_makes_no_update(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module._Run, "_clip", lambda self: math.inf)
    result = run(tiny_trial(), data_dir, tmp_path)
    assert (result.status, result.step) == ("diverged", 0)
    assert result.reason == "step 0: the gradient norm is inf"
    assert result.final_train_loss is None


def test_a_state_beyond_its_bound_ends_the_run(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "STATE_NORM_BOUND", 1e-3)
    result = run(tiny_trial(), data_dir, tmp_path)
    assert result.status == "diverged"
    assert result.reason.startswith("step 0: the state norm is ")


def test_a_validation_loss_that_is_not_finite_is_divergence(data_dir, tmp_path, monkeypatch):
    evaluate = train_module.evaluate

    def overflowing(*args, **kwargs):
        *rows, last = evaluate(*args, **kwargs)
        return [*rows, dataclasses.replace(last, val_loss=math.inf)]

    monkeypatch.setattr(train_module, "evaluate", overflowing)
    result = run(tiny_trial(), data_dir, tmp_path)
    assert result.reason == "step 12: validation loss after 6 loops is inf"
    assert result.evaluation == ()


# ---- memory ------------------------------------------------------------------------------------


def no_room_above(limit, monkeypatch):
    """Make a forward pass of more than `limit` sequences run out of memory."""
    forward = train_module.build_model.__globals__["Parcae"].forward

    def checked(self, ids, *args, **kwargs):
        if ids.shape[0] > limit:
            raise torch.OutOfMemoryError("no room")
        return forward(self, ids, *args, **kwargs)

    monkeypatch.setattr(train_module.build_model.__globals__["Parcae"], "forward", checked)


def test_auto_halves_until_it_fits_keeps_the_batch_and_records_it(data_dir, tmp_path, monkeypatch):
    trial = tiny_trial()
    whole = run(trial, data_dir, tmp_path / "whole")
    no_room_above(3, monkeypatch)
    result = run(trial, data_dir, tmp_path / "auto", micro_batch_sequences="auto")
    assert (result.micro_batch_sequences, result.n_out_of_memory) == (2, 2)
    assert result.n_tokens == trial.n_tokens
    losses = [r.evaluation[1].val_loss for r in (whole, result)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)  # as for any micro-batch


def test_a_size_that_auto_found_is_kept_over_a_resume(data_dir, tmp_path, monkeypatch):
    no_room_above(3, monkeypatch)
    auto = {"micro_batch_sequences": "auto"}
    with pytest.raises(Interrupted):
        run(tiny_trial(), data_dir, tmp_path, stop_requested=stop_after(2), **auto)
    assert run(tiny_trial(), data_dir, tmp_path, **auto).n_out_of_memory == 2


def test_without_auto_running_out_of_memory_is_said(data_dir, tmp_path, monkeypatch):
    no_room_above(3, monkeypatch)
    with pytest.raises(OutOfMemory, match="out of memory with micro_batch_sequences=8 on cpu"):
        run(tiny_trial(), data_dir, tmp_path)


def test_when_not_even_one_sequence_fits_it_is_said(data_dir, tmp_path, monkeypatch):
    no_room_above(0, monkeypatch)
    with pytest.raises(OutOfMemory, match="use a smaller model or context"):
        run(tiny_trial(), data_dir, tmp_path, micro_batch_sequences="auto")


@pytest.mark.slow
# torch's compiler warns about torch's own code, and fails when that is made an error
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("transformer", [False, True])
def test_a_compiled_run_trains_the_same_model_to_rounding(data_dir, tmp_path, transformer):
    trial = tiny_trial(n_steps=6, transformer=transformer)
    eager = run(trial, data_dir, tmp_path / "eager")
    compiled = run(trial, data_dir, tmp_path / "compiled", compile=True)
    losses = [r.evaluation[0].val_loss for r in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)  # float32, 6 updates


# ---- what a user can get wrong -----------------------------------------------------------------


def test_rows_of_another_length_are_refused(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"rows have 17 ids and a context of 8 needs 9"):
        run(tiny_trial(context=8), data_dir, tmp_path)


def test_more_validation_rows_than_there_are_are_refused_before_training(data_dir, tmp_path):
    evaluation = dataclasses.replace(tiny_trial().evaluation, n_sequences=10**6)
    with pytest.raises(UserError, match=r"validation split has \d+ rows and .* is 1000000"):
        run(tiny_trial(evaluation=evaluation), data_dir, tmp_path)


def test_a_missing_gpu_is_said(data_dir, tmp_path):
    with pytest.raises(UserError, match="device is 'cuda:63', GPU 63, and torch sees"):
        run(tiny_trial(), data_dir, tmp_path, device="cuda:63")
    with pytest.raises(UserError, match="device is 'tpus'; give"):
        run(tiny_trial(), data_dir, tmp_path, device="tpus")


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda", local_rank=1) == torch.device("cuda", 1)
    assert resolve_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    assert resolve_device("cpu", local_rank=1) == torch.device("cpu")
    with pytest.raises(UserError, match=r"GPU 2, and torch sees 2 .*fewer processes"):
        resolve_device("auto", local_rank=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    "field",
    ["micro_batch_sequences", "threads", "log_every_steps", "checkpoint_every_steps",
     "checkpoint_every_s", "peak_flops_per_s"],
)  # fmt: skip
def test_an_execution_refuses_zero(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        Execution(**{field: 0})


def test_an_execution_refuses_kernels_it_cannot_have():
    with pytest.raises(ValueError, match="impl is 'cuda'; it must be auto, torch or triton"):
        Execution(impl="cuda")
