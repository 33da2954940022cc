"""The benchmarks' own arithmetic, and that they refuse to report what is not right."""

import csv
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from benchmarks import cases, common, speed
from benchmarks.cases import VARIANTS, Case, check, executed_over_ideal, gradient
from benchmarks.ops import (
    EXAMPLES,
    Example,
    Shape,
    find_ops,
    implementations,
    inaccurate,
    least_bytes,
)
from benchmarks.packing import make_trials, together
from benchmarks.rates import Rates
from parcae_core.trial import DataConfig

CPU = torch.device("cpu")
EAGER = tuple(v for v in VARIANTS if "compile" not in v)
RATES = Rates(matmul_flops_per_s=1e12, copy_bytes_per_s=1e9)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny_case(**changes) -> Case:
    base = {"preset": "nano", "batch": 4, "seq_len": 16, "device": CPU, "precision": "float32"}
    return Case(**(base | changes))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_variants_compute_the_same_and_small_portions_do_too(precision):
    case = tiny_case(precision=precision)
    assert set(check(case, EAGER)) == set(EAGER)
    whole = gradient(case, "ours", case.draw(0), micro_batch=4)
    in_parts = gradient(case, "ours", case.draw(0), micro_batch=3)
    assert whole == pytest.approx(in_parts, abs=1e-5 if precision == "float32" else 1e-2)


def test_a_wrong_variant_is_not_timed(monkeypatch):
    right = cases.gradient

    def wrong(case, variant, *rest):
        return right(case, variant, *rest) + 0.01 * (variant == "ours")

    monkeypatch.setattr(cases, "gradient", wrong)
    with pytest.raises(SystemExit, match="not equal to the masked definition"):
        check(tiny_case(), ("ours",))


def test_rows_are_written_one_by_one_to_a_folder_and_with_a_commit(monkeypatch, tmp_path):
    """What was measured before a benchmark is cut off is on the disk."""
    monkeypatch.setenv("PARCAE_COMMIT", "0123abcd")
    small = ["--preset", "nano", "--batch", "2", "--seq-len", "16", "--steps", "2"]
    real = speed.append_rows

    def cut_off_after_one(*given):
        real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "append_rows", cut_off_after_one)
    rates = Rates(matmul_flops_per_s=1e12, copy_bytes_per_s=1e9)
    monkeypatch.setattr(speed, "measure_rates", lambda *_: rates)
    args = [*small, "--what", "step", "--variants", "ours", "masked", "--results", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        speed.main(args)
    with (tmp_path / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], r["commit"]) for r in rows] == [("ours", "0123abcd")]


def test_rows_without_a_commit_are_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("PARCAE_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git to ask
    row = common.provenance()
    assert row["commit"] == "unknown"
    with pytest.raises(SystemExit, match="set PARCAE_COMMIT"):
        common.append_rows("speed", [row], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_op_that_errs_is_named_and_one_that_rounds_is_not():
    example = Example(args=(torch.linspace(-1, 1, 99).bfloat16(),), options={})
    calls = {
        "reference": lambda x: 0.5 * torch.relu(x).square(),
        "once rounded": lambda x: (0.5 * torch.relu(x.float()).square()).to(x.dtype),
        "wrong": lambda x: 0.51 * torch.relu(x).square(),
    }
    assert set(inaccurate(calls, example, torch.bfloat16)) == {"wrong"}


def test_masking_executes_more_than_the_depths_ask_for():
    case = tiny_case(batch=16)
    draws = [case.draw(s) for s in range(8)]
    assert executed_over_ideal(case, "ours", draws) == 1
    assert 1.4 < executed_over_ideal(case, "masked", draws) < 2


def test_floors_are_flops_and_bytes_over_measured_rates():
    assert RATES.floors(flops=2e12, n_bytes=3e9) == (2.0, 3.0)
    case = tiny_case()
    more = tiny_case(seq_len=32)
    assert 1 < speed.step_bytes(more, case.draw(0)) / speed.step_bytes(case, case.draw(0)) < 2


def test_every_op_has_an_example_that_its_implementations_agree_on():
    shape = Shape(
        batch=2, seq_len=8, d_model=32, n_head=2, d_ff=64, dtype=torch.float32, device=CPU
    )
    ops = find_ops()
    assert {"rms_norm", "relu_squared"} <= set(ops) <= set(EXAMPLES)
    for name, (reference, op) in ops.items():
        example = EXAMPLES[name](shape)
        calls = implementations(reference, op, example, CPU)
        torch.testing.assert_close(calls["torch"](*example.args), calls["reference"](*example.args))
        alone, both = (least_bytes(calls["reference"], example, g) for g in (False, True))
        assert 2 < both / alone < 3


def test_relu_squared_moves_what_its_formula_says():
    example = Example(args=(torch.zeros(10),), options={})
    assert least_bytes(torch.relu, example, False) == 80  # x and y
    assert least_bytes(torch.relu, example, True) == 80 + 120  # and x, dy, dx


def test_tokens_count_only_while_all_trials_train():
    slow = [(10.0 + t, t) for t in range(1, 21)]  # a step a second, from 11 to 30
    fast = [(8.0 + 0.5 * t, t) for t in range(1, 41)]  # two steps a second, from 8.5 to 28
    per_s, seconds = together([slow, fast], batch_tokens=100)
    assert per_s == pytest.approx(300)
    assert seconds == pytest.approx(28.0 - 15.0)
    late = [(50.0 + t, t) for t in range(1, 21)]
    with pytest.raises(SystemExit, match="never at work together"):
        together([slow, late], batch_tokens=100)


def test_packed_trials_differ_in_their_seed_alone():
    args = Namespace(preset="nano", steps=10, batch=2, context=16, mean_recurrence=2)
    data = DataConfig(corpus="c", fingerprint="f", tokenizer="bytes", vocab_size=264)
    trials = make_trials(args, 4, data)
    assert len({t.trial_id for t in trials}) == 4
    assert len({replace(t, seed=0).trial_id for t in trials}) == 1
    assert {t.n_steps for t in trials} == {10}
