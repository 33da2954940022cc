import numpy as np
import pandas as pd
import pytest

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
    assert any("'State' gives 1 as running of 3 rows" in n for n in noted)
