import re

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.errors import InputError
from analysis.isoflop import parabolas
from analysis.table import checks, load


def isoflop(budgets=(3e17, 1e18, 3e18, 1e19), sizes=(60e6,), seeds=(0,), noise=0.0, off=0.0):
    """Losses lowest at mu = 3.2 (C / 1e18)^0.4, for one size or more, achieved FLOPs off by `off`."""
    rng = np.random.default_rng(0)
    rows = []
    for size in sizes:
        for c in budgets:
            for mu in (1, 2, 3, 4, 6, 8, 12):
                for seed in seeds:
                    best = np.log(3.2 * (c / 1e18) ** 0.4 * (size / 60e6) ** 0.5)
                    loss = 3 - 0.1 * np.log(c / 1e18) + 0.02 * (np.log(mu) - best) ** 2
                    spent = c * (1 + off * rng.uniform(-1, 1))
                    noisy = loss + noise * rng.standard_normal()
                    rows.append((size, spent, mu, c / (4e8 + 8e7 * mu), noisy, seed))
    return pd.DataFrame(rows, columns=["N", "budget", "mu", "D", "loss", "seed"])


@pytest.fixture
def fit(tmp_path):
    def run(frame, **options):
        frame.to_csv(tmp_path / "a.csv", index=False)
        return parabolas.fit_recurrence(load.load(tmp_path / "a.csv", **options)).result

    return run


def test_two_sizes_are_refused_and_the_advice_keeps_one(fit):
    frame = isoflop(sizes=(60e6, 120e6))
    with pytest.raises(
        InputError, match=r"2 model sizes \(N 6e\+07, 1.2e\+08\).*--where N=60000000"
    ):
        fit(frame)
    assert fit(frame, where=("N=60000000",))["gamma_mu"].value == pytest.approx(0.4)
    twin = frame.assign(N=frame.N * np.where(frame.mu == 1, 0.97, 1.0))
    assert fit(twin[frame.N < 1e8])["gamma_mu"].value == pytest.approx(
        0.4
    )  # a transformer's, not a size
    unrolled = isoflop().assign(N=lambda d: 20e6 + 12e6 * d.mu)
    assert fit(unrolled)["gamma_mu"].value == pytest.approx(0.4)


def test_achieved_flops_make_the_budgets_that_were_meant(fit):
    result = fit(isoflop(off=3e-5))
    assert result["gamma_mu"].value == pytest.approx(0.4, abs=1e-4)
    assert any("28 values of budget make 4 budgets: those within 1%" in n for n in result.notes)


def test_seeds_are_replicas_and_give_the_noise(fit):
    frame = isoflop(seeds=range(8), noise=1e-3)
    result = fit(frame)
    assert result.problems == ()
    assert result.n_obs == 28
    assert result["gamma_mu"].value == pytest.approx(0.4, abs=0.05)
    averaged = checks.averaged_seeds(
        load.Table(
            frame=frame.rename(
                columns={"loss": "val_loss", "budget": "budget_flops", "mu": "mean_recurrence"}
            ),
            source="s",
            kind="points",
            origin="-",
        )
    )
    assert averaged.dof == 28 * 7
    assert averaged.variance**0.5 == pytest.approx(1e-3, rel=0.1)  # 196 degrees: 5 % standard error


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("tokenizer", ("gpt2", "bytes")),
        ("dataset", ("c4", "fineweb")),
        ("config/vocab_size", (256, 50257)),
        ("flops_rule", ("paper", "code")),
        ("flops_method", ("6ND", "full")),
        ("eval_set", ("c4", "pile")),
        ("split", ("val", "test")),
        ("data", ("c4", "pile")),
    ],
)
def test_mixtures_are_refused_in_mapped_tables_by_the_files_own_column(tmp_path, column, values):
    frame = isoflop().assign(**{column: np.where(np.arange(28) < 14, *values)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    mapping = {"D": "D", "loss": "loss"}
    with pytest.raises(InputError, match=f"the rows mix {column} .*--where .?{column}={values[0]}"):
        load.load(tmp_path / "a.csv", mapping)
    kept = load.load(tmp_path / "a.csv", mapping, (f"{column}={values[0]}",))
    assert len(kept.frame) == 14


def test_a_column_of_numbers_called_data_names_no_texts(tmp_path):
    isoflop().rename(columns={"D": "data"}).to_csv(tmp_path / "a.csv", index=False)
    assert len(load.load(tmp_path / "a.csv", {"D": "data", "loss": "loss"}).frame) == 28
    isoflop().assign(data=np.arange(28.0)).to_csv(tmp_path / "a.csv", index=False)
    assert len(load.load(tmp_path / "a.csv", {"D": "D", "loss": "loss"}).frame) == 28


def test_a_run_counted_twice_is_named_and_an_equal_row_is_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("run,D,loss\na,1e9,3.1\na,1e9,3.2\na,2e9,3.0\nb,1e9,3.3\nb,1e9,3.3\n")
    table = load.load(path)
    assert [(d.reason, d.n_rows) for d in table.dropped] == [
        ("equal to another row in every cell", 1)
    ]
    [words] = checks.disagreements(table, ())
    assert words.startswith("run a has 2 losses at D = 1e+09 (3.1000, 3.2000): keep one")


def test_filters_act_first_and_know_the_files_own_words(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "Name,N,tokens seen,eval/loss,State\nr0,1e8,1e9,3.1,finished\nr1,1e8,2e9,12000,crashed\n"
        "r2,1e8,pending,3.0,running\nr3,1e8,11.2B,inf,finished\n"
    )
    columns = {"N": "N", "D": "tokens seen", "loss": "eval/loss"}
    with pytest.raises(InputError, match=r'largest loss is 1.2e\+04.*--where "val_loss<25"'):
        load.load(path, columns)
    for where, n in (
        ("val_loss<25", 2),
        ("eval/loss<25", 2),
        ("State=finished", 2),
        ("State!=crashed", 3),
        ("tokens seen<1e12", 2),
    ):
        conditions = ("loss!=12000", where) if "tokens" in where else (where,)
        assert len(load.load(path, columns, conditions).frame) == n
    [lost] = load.load(path, columns, ("loss!=12000", "tokens seen<1e12")).dropped[-1:]
    assert lost.reason == "not tokens seen<1e12 (1 hold no number there, like 'pending')"
    with pytest.raises(
        InputError, match=r"no row meets --where 'State=done'.*finished, crashed, running"
    ):
        load.load(path, columns, ("State=done",))
    noted = load.load(path, columns, ("loss!=12000",)).notes
    path.write_text("N,D,loss,ok\n1e8,1e9,3.1,True\n2e8,1e9,3.0,False\n3e8,1e9,2.9,TRUE\n")
    assert len(load.load(path, where=("ok=true",)).frame) == 2
    assert len(load.load(path, where=("ok!=True",)).frame) == 1
    assert any("'State' gives 1 as running of 3 rows" in n for n in noted)


def ladder(sizes=(1e7, 3e7, 1e8, 3e8), budgets=(1e9, 3e9, 1e10, 3e10), noise=1e-3):
    """Runs of a Chinchilla law over sizes and tokens."""
    n, d = (x.ravel() for x in np.meshgrid(sizes, budgets))
    rng = np.random.default_rng(1)
    loss = (1.8 + 420 * n**-0.345 + 1500 * d**-0.36) * np.exp(noise * rng.standard_normal(n.size))
    return pd.DataFrame({"N": n, "D": d, "loss": loss})


def chinchilla(frame, **options):
    return api.fit_source(frame, "chinchilla", interval="none", n_starts=4, **options)


@pytest.mark.parametrize("column", ["architecture", "config/arch", "model_type", "preset"])
def test_two_architectures_fitted_as_one_are_a_problem_and_the_advice_keeps_one(column):
    frame = ladder()
    both = pd.concat(
        [frame.assign(**{column: "gpt"}), frame.assign(loss=frame.loss * 0.97, **{column: "rnn"})]
    )
    [sentence] = chinchilla(both).problems
    assert sentence.startswith(f"the rows mix {column} gpt and rnn")
    [advice] = re.findall(r"--where \"?([^\"]*)\"?$", sentence)
    assert chinchilla(both, where=(advice,)).valid
    [seen] = chinchilla(both.rename(columns={column: "remark"})).problems  # nobody said what it is
    assert seen.startswith("the loss depends on column 'remark'")
    assert "gpt lies 3.0% above rnn" in seen


def test_models_named_by_their_size_are_no_mixture():
    frame = ladder()
    assert chinchilla(frame.assign(model_type=frame.N.map("gpt-{:.0e}".format))).valid
    assert chinchilla(frame.assign(preset=frame.N.map("p{:.0e}".format))).valid


def test_a_law_without_loops_does_not_take_looped_and_fixed_depth_runs_for_one():
    frame = ladder()
    looped = pd.concat([frame.assign(mu=1), frame.assign(loss=frame.loss * 0.98, mu=4)])
    [sentence] = chinchilla(looped).problems
    assert sentence.startswith("the runs loop differently (mu 1, 4) and the law does not know mu")
    [advice] = re.findall(r'--where "([^"]*)"', sentence)
    assert chinchilla(looped, where=(advice,)).valid
    [sentence] = chinchilla(looped.rename(columns={"mu": "T"})).problems
    assert sentence.startswith("the runs loop differently (T 1, 4)")
    unrolled = frame.assign(mu=frame.N.rank(method="dense"))  # N counts the loops already
    assert chinchilla(unrolled).valid
    everything = api.fit_source(
        looped.assign(C=6 * looped.N * looped.D), "frontier", interval="none"
    )
    assert not any("loop differently" in p for p in everything.problems)


def test_fixed_depth_is_one_loop_to_a_law_of_unrolled_sizes():
    frame = ladder()
    looped = pd.concat(
        [
            frame.assign(mu=mu, N_rec=frame.N / 2, arch="plain" if mu == 1 else "looped")
            for mu in (1, 2, 4)
        ]
    )
    unrolled = looped.N + (looped.mu - 1) * looped.N_rec
    looped["loss"] = 1.8 + 420 * unrolled**-0.345 + 1500 * looped.D**-0.36
    result = api.fit_source(looped, "training", interval="none", n_starts=4)
    assert result.valid
    assert result["x"].value == pytest.approx(0.345, rel=1e-3)


def test_several_learning_rates_of_a_setting_are_a_problem_and_both_cures_work():
    frame = ladder(noise=2e-3)
    swept = pd.concat(
        [
            frame.assign(loss=frame.loss * (1 + slack), lr=lr)
            for lr, slack in ((1e-3, 0.0), (3e-3, 0.01), (1e-2, 0.03))
        ]
    )
    [sentence] = chinchilla(swept).problems
    assert sentence.startswith("16 settings were run with several values of lr,")
    assert chinchilla(swept, where=("lr=0.001",)).valid
    assert "--where lr=0.001, or" in sentence
    by_gradient = swept.assign(mu_bwd=swept.lr.rank(method="dense")).drop(columns="lr")
    assert (
        "16 settings were run with several values of mu_bwd," in chinchilla(by_gradient).problems[0]
    )
    assert chinchilla(swept, undertuned=10.0).valid
    best = swept.iloc[:16]
    assert chinchilla(best.assign(lr=np.linspace(1e-3, 1e-2, 16))).valid


@pytest.mark.parametrize("named", [True, False])
def test_one_run_off_its_parabola_is_named_and_the_advice_leaves_it_out(fit, named):
    frame = isoflop(noise=5e-4).assign(run=[f"r{i}" for i in range(28)]).drop(columns="seed")
    frame = frame if named else frame.drop(columns="run")
    assert fit(frame).problems == ()
    wrong = frame.assign(loss=frame.loss.where(frame.index != 10, frame.loss + 0.05))
    [sentence] = [p for p in fit(wrong).problems if "lies off the parabola" in p]
    assert sentence.startswith(f"1e+18 FLOPs: {'run r10, ' if named else ''}mu = 4 (loss ")
    [advice] = re.findall(r'--where "([^"]*)"', sentence)
    mended = fit(wrong, where=(advice,))
    assert mended.problems == ()
    assert mended["gamma_mu"].value == pytest.approx(0.4, abs=0.05)
