"""Plans that rest on benchmark rows: whose, in which order, and said so."""

import csv
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.common import RESULTS, rate_rows
from parcae_core.accounting.hardware import cpu_device, peak_flops_per_s
from parcae_core.errors import UserError
from parcae_core.trial import Resources
from sweeps.cli.tables.plan import plan_data, print_plan
from sweeps.design import benchmark_rates
from sweeps.design.benchmark_rates import best_share, measured_rate, with_measured_shares
from sweeps.design.estimate import ASSUMED_FLOPS_PER_CPU, rate_of
from sweeps.store import Store
from tests.support.tiny import tiny_plan

GPU = {"cpus": 1, "gpus": 1}
H100 = "NVIDIA H100 80GB HBM3"
SPEED = {
    "what": "train step + optimizer",
    "variant": "ours",
    "precision": "float32",
    "commit": "abc",
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A rates table of this test's own; rows are for the tiny plan's preset, or as changed."""
    n_params = max(t.cost.n_params for t in tiny_plan().trials)
    path = tmp_path / "rates.csv"
    monkeypatch.setattr(benchmark_rates, "RATES", path)
    benchmark_rates.append([], path)
    base = SPEED | {"device": H100, "preset": "nano", "n_params": n_params, "flops_per_s": 1e9}

    def write(name: str, *rows: dict) -> None:
        benchmark_rates.append(rate_rows(name, [base | row for row in rows]), path)
        benchmark_rates.read.cache_clear()

    return write


def test_rows_of_the_named_device_and_preset_give_the_rate_and_the_last_one_holds(results):
    results("speed", {"flops_per_s": 5e9}, {"flops_per_s": 2e9}, {"variant": "masked"})
    trials = tiny_plan(resources=GPU).trials
    rate = rate_of(trials, None, device="nvidia h100")
    assert rate.source == f"from benchmark rows for {H100}: speed.csv, commit abc"
    assert rate.seconds(trials[0]) == trials[0].train_flops("exact") / 2e9
    assert rate_of(trials, None, 7e9, device="NVIDIA H100").flops_per_s == 7e9  # a given rate wins
    for gpus in (0.25, 0.5):
        trial = replace(trials[0], resources=Resources(cpus=1, gpus=gpus))
        source = f"{H100}: speed.csv, commit abc, taken {gpus:g} times"
        assert measured_rate(trial, "H100") == (gpus * 2e9, source)


@pytest.mark.parametrize(
    "other",
    [{"device": "NVIDIA A100"}, {"preset": "mini"}, {"precision": "bfloat16"}, {"n_params": 99},
     {"what": "train step"}],
    ids=str,
)  # fmt: skip
def test_rows_of_something_else_do_not_count(results, other):
    results("speed", other)
    rate = rate_of(tiny_plan(resources=GPU).trials, None, device="NVIDIA H100")
    assert rate.flops_per_s is None
    assert "give --flops-per-s, or --device and --mfu" in rate.source


def test_an_assumed_share_of_the_peak_is_taken_only_when_given():
    trials = tiny_plan(resources={"cpus": 1, "gpus": 0.5}, precision="bfloat16").trials
    rate = rate_of(trials, None, device=H100, mfu=0.4)
    assert rate.source == f"assumed: 40% of the published peak of {H100}, 9.894e14 FLOP/s"
    assert rate.seconds(trials[0]) == pytest.approx(
        trials[0].train_flops("exact") / (0.2 * 989.4e12)
    )
    with pytest.raises(UserError, match=r"--mfu 0.4: no published peak is known for abacus"):
        rate_of(trials, None, device="abacus", mfu=0.4)
    assert peak_flops_per_s("NVIDIA H100 PCIe") < peak_flops_per_s(H100)


def test_a_cpu_counts_only_rows_of_its_own_model_and_threads(results):
    trials = tiny_plan(resources={"cpus": 2}).trials
    results("speed", {"device": cpu_device(2)})
    assert rate_of(trials, None).source.startswith("from benchmark rows for cpu")
    one_thread = tiny_plan().trials
    assert rate_of(one_thread, None).flops_per_s == ASSUMED_FLOPS_PER_CPU


@pytest.mark.parametrize(
    ("row", "named", "counts"),
    [
        ("cpu, 2 threads", "cpu", True),
        ("cpu, 2 threads", "2", False),
        ("cpu, 2 threads", "threads", False),
        ("cpu (AMD EPYC), 2 threads", "cpu (amd epyc), 2 threads", True),
        ("cpu (AMD EPYC), 2 threads", "AMD EPYC", True),
        (H100, "h100", True),
        (H100, "100", False),
        (H100, "NVIDIA H", False),
        (H100, "", False),
    ],
)
def test_a_device_is_named_in_whole_words(results, row, named, counts):
    results("speed", {"device": row})
    found = measured_rate(tiny_plan().trials[0], named)
    assert found == ((1e9, f"{row}: speed.csv, commit abc") if counts else None)


def test_the_best_share_is_read_from_packing_rows_and_reaches_the_trials(results, tmp_path):
    rows = [
        {"concurrent": n, "flops_per_s": f} for n, f in ((1, 1e9), (2, 3e9), (4, 8e9), (8, 7e9))
    ]
    results("packing", *rows)
    plan = tiny_plan(resources=GPU)
    assert best_share(plan.trials[0], H100) == (0.25, f"{H100}: packing.csv, commit abc")
    packed, notes = with_measured_shares(plan, H100)
    assert {t.resources.gpus for t in packed.trials} == {0.25}
    assert packed.trial_ids == plan.trial_ids
    assert notes == [
        f"GPU share 0.25 of nano measured best on {H100}: packing.csv, commit abc"
    ]  # fmt: skip
    assert measured_rate(packed.trials[0], H100) == (2e9, f"{H100}: packing.csv, commit abc")
    data = plan_data(packed, Store(tmp_path, "none"), cpus=8, gpus=1, device=H100, notes=notes)
    assert data["totals"]["makespan_s"] < data["totals"]["left_s"]
    given = tiny_plan(resources=GPU | {"share": "given"})
    assert with_measured_shares(given, H100) == (given, [])


def test_without_rows_the_specs_share_holds_and_the_plan_says_so(results):
    plan = tiny_plan(resources={"cpus": 1, "gpus": 0.5})
    packed, notes = with_measured_shares(plan, H100)
    assert packed.trials == plan.trials
    assert notes == [
        f"GPU share 0.5 of nano as the spec says; not yet measured on {H100}",
    ]
    assert with_measured_shares(tiny_plan(), H100)[1] == []  # no GPU, no word


def test_the_plan_estimates_memory_with_activations(tmp_path):
    data = plan_data(tiny_plan(), Store(tmp_path, "none"), cpus=2)
    for t in data["trials"]:
        assert t["state_bytes"] < t["peak_bytes_one_sequence"] < t["peak_bytes"]
        assert t["activation_bytes_per_sequence"] > 0


def test_memory_is_of_each_process_with_its_share_of_a_batch(tmp_path, capsys):
    peaks = {}
    for n in (1, 4):
        data = plan_data(
            tiny_plan(resources={"cpus": n, "processes": n}), Store(tmp_path, "none"), cpus=4
        )
        peaks[n] = [t["peak_bytes"] for t in data["trials"]]
        print_plan(data)
    assert peaks[4] == [t["peak_bytes_one_sequence"] for t in data["trials"]]  # of a batch of 4
    assert peaks[4] < peaks[1]
    one, four = [line for line in capsys.readouterr().out.splitlines() if "memory of" in line]
    assert "with the whole batch at a time" in one
    assert four.startswith("memory of the largest, in each of 4 processes: ")


def test_the_rows_that_plans_read_are_those_of_the_committed_benchmarks():
    committed = []
    for name in ("speed", "packing"):
        path = RESULTS / f"{name}.csv"
        if path.exists():
            with path.open(newline="") as file:
                committed += rate_rows(name, list(csv.DictReader(file)))
    shipped = benchmark_rates.read(benchmark_rates.RATES)
    older = [r for r in shipped if r.source.startswith("core_step.csv")]
    assert Counter(shipped) == Counter(committed + older)
    assert older
