import numpy as np
import pandas as pd
import pytest

from analysis import api, loops, test_time
from analysis.errors import InputError
from analysis.table import load

T = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
NOISE = 1e-4 * np.random.default_rng(0).standard_normal(len(T))
CLEAN = 2.9 + 0.55 * np.exp(-0.6 * T) + NOISE


@pytest.fixture
def write(tmp_path):
    def run(*curves, names=None):
        names = names or [f"r{i}" for i in range(len(curves))]
        lines = [
            f"{name},{t},{v}"
            for name, losses in zip(names, curves, strict=True)
            for t, v in zip(T, losses, strict=True)
        ]
        path = tmp_path / "curves.csv"
        path.write_text("\n".join(["run,T,loss", *lines]))
        return path

    return run


def problems(path, **options):
    return test_time.fit_test_time(load.load(path, **options)).result.problems


def test_a_loss_that_rises_again_is_said_with_its_place_and_the_advice_works(write):
    path = write(CLEAN + 0.004 * np.maximum(T - 8, 0))
    [words] = problems(path)
    assert "the loss rises after T = 8 (2.90" in words
    assert problems(path, where=("n_loops<=8",)) == ()
    answer = loops.loops_to_reach(load.load(path), 2.92)
    assert answer.values[0].value == 6
    assert "the losses measured at T = 6, 8, 12 reach it" in answer.notes[0]
    assert not answer.valid
    [words] = problems(write(CLEAN + 0.02 * np.maximum(T - 8, 0)))  # ends above its start
    assert "it is lowest at T = 8" in words


def test_a_rise_that_bends_the_whole_curve_is_said_as_a_rise(write):
    path = write(2.9 + 0.8 * np.exp(-0.5 * T) + 0.012 * np.log(np.maximum(T / 4, 1)) ** 2)
    [words] = problems(path)
    assert "the loss rises after T = 8 " in words or "the loss rises after T = 12 " in words


def test_a_loss_that_explodes_with_loops_is_judged_and_a_perplexity_refused(write):
    explodes = CLEAN + np.where(T > 12, 2.0 * (T - 13), 0.0)
    [words] = problems(write(explodes))
    assert "lowest at T = 12" in words
    with pytest.raises(InputError, match=r"the largest loss is 40.9; .* 1 of 10 rows"):
        api.fit_table(load.load(write(explodes)), "E + A*T**-z")
    with pytest.raises(InputError, match=r"from 20.08 to 27.\d*, as perplexities do .* --unit ppl"):
        problems(write(np.exp(CLEAN + 0.1)))


def test_one_point_that_stands_off_is_named(write):
    path = write(np.where(T == 6, CLEAN + 0.05, CLEAN))
    [words] = problems(path)
    assert "the loss at T = 6 (2.96" in words
    assert problems(path, where=("T!=6",)) == ()


def test_losses_of_another_form_are_a_lack_of_fit(write):
    [words] = problems(write(2.6 + 0.9 * T**-0.5 + NOISE))
    assert "lack of fit: the residuals run along T" in words
    assert problems(write(CLEAN)) == ()


def test_two_curves_are_never_fitted_as_one(write):
    both = write(CLEAN, CLEAN + 0.1, names=["a", "a"])
    with pytest.raises(
        InputError, match=r"run a has 2 losses at T = 1 \(3.2019, 3.3019\).*map run"
    ):
        problems(both)
    no_run = load.load(both, {"T": "T", "loss": "loss"})
    with pytest.raises(InputError, match=r"2 losses at T = 1 .*tells runs apart.*run=COLUMN"):
        test_time.fit_test_time(no_run)
    found = test_time.fit_test_time(
        load.load(write(CLEAN, CLEAN, CLEAN + 0.1, names=["b", "a", "a"]))
    )
    [words] = found.result.problems
    assert words.startswith("run a (a): 2 losses at T = 1")
    assert found.result["z[b]"].value == pytest.approx(0.6, abs=0.01)


def test_rows_without_a_run_are_left_out_and_said(write):
    result = test_time.fit_test_time(load.load(write(CLEAN, CLEAN + 0.1, names=["a", ""]))).result
    assert [(d.reason, d.n_rows) for d in result.dropped] == [
        ("no run is named in column 'run'", 10)
    ]


def test_curves_of_one_table_share_the_level_of_false_alarms(write):
    """A sound curve that chance alone would refuse by itself, among eleven others."""
    noisy = [
        (2.9 + 0.55 * np.exp(-0.6 * T))
        * np.exp(3e-3 * np.random.default_rng(s).standard_normal(len(T)))
        for s in range(12)
    ]
    [words] = problems(write(noisy[5]))
    assert words.startswith("run r0 (r0): the loss rises after T = 16")
    assert problems(write(*noisy)) == ()


@pytest.mark.parametrize(
    ("loops", "loss", "level"),
    [
        (T, lambda t: 2.9 + 0.6 * np.exp(-0.5 * t) + 0.005 * np.maximum(0, np.log2(t / 4)), 2.9),
        (T, lambda t: 2.9 + 0.6 * np.exp(-0.5 * t) - 0.01 * np.log2(t), 2.9),
        (T[3:], lambda t: 2.6 + 0.6 / t, 2.6),
    ],
)
def test_a_misfit_too_small_to_refuse_is_in_the_interval_of_l_inf(loops, loss, level):
    """A slow rise, a slow fall, another form: the exponential's own interval held none of the three levels."""
    rng, held, own = np.random.default_rng(9), [], []
    for _ in range(6):
        curve = loss(loops) * np.exp(3e-4 * rng.standard_normal(len(loops)))
        frame = pd.DataFrame({"run": "a", "T": loops, "loss": curve})
        found = test_time.fit_test_time(load.load(frame))
        if found.result.problems:
            continue
        p, bounds = found.result["L_inf"], found.curves[0].fit.intervals
        held.append(p.ci_low <= level <= p.ci_high)
        own.append(bounds.low["L_inf"] <= level <= bounds.high["L_inf"])
        assert "L_inf's interval of 1 of 1 curves (a) is wider" in found.result.notes[-1]
    assert sum(held) >= len(held) - 1
    assert sum(own) <= 1
