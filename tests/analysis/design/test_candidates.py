"""A table of candidate runs, read as `fit` reads it: which rows are runs, which column is which, what is said."""

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.design import candidates
from analysis.design.pool import Options
from analysis.errors import InputError

STATE_REVEALS = "bundled:state-reveals"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """6 sizes x 5 token counts of a Chinchilla law; the costliest row is the last."""
    n, d = np.repeat(np.geomspace(1e7, 1e9, 6), 5), np.tile(np.geomspace(1e9, 1e10, 5), 6)
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(30))
    loss = (1.8 + 420 * n**-0.345 + 1500 * d**-0.36) * noise
    return pd.DataFrame({"N": n, "D": d, "loss": loss, "flops": 6 * n * d})


@pytest.fixture
def chosen(tmp_path):
    """What is chosen of a table, written to a file first."""

    def of(table: pd.DataFrame, law: str = "chinchilla", cost: str = "flops", share=0.1, **options):
        table.to_csv(tmp_path / "pool.csv", index=False)
        return candidates.design(tmp_path / "pool.csv", law, cost=cost, share=share, **options)

    return of


def test_a_run_with_sixteen_readouts_is_one_candidate_at_its_training_depth():
    found = candidates.design(STATE_REVEALS, "training", cost="train_flops_paper", share=0.1)
    records = api.load(STATE_REVEALS).frame  # 96 runs, 936 rows
    rows = records.iloc[list(found.rows)]
    assert (rows.n_loops == rows.mean_recurrence).all()
    assert rows.trial_id.is_unique
    assert found.of == records.drop_duplicates("trial_id").train_flops_paper.sum()
    said = "left out: 840 rows: evaluated at another number of loops than mean_recurrence"
    assert said in found.notes


@pytest.mark.parametrize(
    ("changes", "law", "options"),
    [
        ({"eval_loss": "loss"}, "chinchilla", {"columns": {"loss": "eval_loss"}}),
        ({"val_loss": "loss"}, "chinchilla", {}),
        ({"err": "loss"}, "err = E + A*N**-a + B*D**-b", {}),
        ({"y": "loss"}, "y = E + A*N**-a + B*D**-b", {}),
    ],
)
def test_the_column_that_fit_fits_is_the_one_that_is_read(chosen, frame, changes, law, options):
    """Beside it a `loss` that goes the other way."""
    formula = law if "=" in law else "chinchilla"
    right = chosen(frame, formula.partition("= ")[2] or formula)
    both = frame.assign(
        **{new: frame[old] for new, old in changes.items()}, loss=9 - 3e-9 * frame.N
    )
    assert chosen(both, law, **options).rows == right.rows
    assert chosen(both.drop(columns=list(changes))).rows != right.rows


def test_a_law_of_accuracy_reads_its_own_target(chosen, frame):
    accuracy = 1 / (1 + np.exp(4 * (frame.loss - 2.6)))
    found = chosen(frame.assign(y=accuracy), "accuracy")
    assert found.rows != chosen(frame.assign(y=accuracy[::-1].to_numpy()), "accuracy").rows
    assert any(n.startswith("no row has a y") for n in chosen(frame, "accuracy").notes)


@pytest.mark.parametrize("cost", ["6*N*D", "6*params*toks", "6*N*toks"])
@pytest.mark.parametrize("law", ["chinchilla", "E + A*N**-a + B*D**-b"])
def test_a_mapping_reaches_the_cost_the_formula_and_the_target(chosen, frame, cost, law):
    other = frame.rename(columns={"N": "params", "D": "toks", "loss": "final"}).drop(
        columns="flops"
    )
    mapping = {"N": "params", "D": "toks", "loss": "final"}
    found = chosen(other, law, cost, columns=mapping, target="N>1e8")
    assert found.rows == chosen(frame, law, target="N>1e8").rows
    assert found.rows == chosen(other, law, cost, columns=mapping, target="params>1e8").rows


def test_a_loss_that_is_there_and_not_mapped_is_no_missing_one(chosen, frame):
    with pytest.raises(
        InputError, match=r"needs val_loss .* Map it with --columns D=D,N=N,loss=COLUMN"
    ):
        chosen(frame, columns={"D": "D", "N": "N"})


def test_what_was_proposed_and_measured_counts(chosen, frame):
    """The costliest tenth is to be predicted, and two of its three rows were measured."""
    some = frame.assign(loss=frame.loss.where(frame.index < 10))
    more = some.assign(loss=frame.loss.where((frame.index < 10) | frame.index.isin([28, 29])))
    first, second = chosen(some, share=0.3), chosen(more, share=0.3)
    assert (
        "10 rows have a loss and count as run already; 20 without one are candidates" in first.notes
    )
    assert (
        "12 rows have a loss and count as run already; 18 without one are candidates"
        in second.notes
    )
    assert first.rows != second.rows
    moved = more.assign(loss=more.loss.where(more.index != 28, more.loss * 1.1))
    assert chosen(moved, share=1.0).rows != chosen(more, share=1.0).rows
    assert not {28, 29} & set(second.rows)


@pytest.mark.parametrize("how", ["split", "target"])
def test_losses_of_named_target_rows_are_not_read(chosen, frame, how):
    half = frame.assign(loss=frame.loss.where((frame.index % 2 == 0) | (frame.index > 24)))
    wrong = half.assign(loss=half.loss.where(half.index < 25, half.loss * 2))
    options = {"target": "N>5e8"} if how == "target" else {}
    if how == "split":
        half, wrong = (t.assign(split=["train"] * 25 + ["Test"] * 5) for t in (half, wrong))
    found = chosen(half, share=0.3, **options)
    assert found.rows == chosen(wrong, share=0.3, **options).rows
    assert "5 target rows have a loss, which is not read" in found.notes
    assert max(found.rows) < 25


def test_rows_of_groups_that_cannot_be_chosen_are_counted(chosen, frame):
    split = ["train"] * 8 + ["test"] * 2 + ["train"] * 20
    groups = ["a"] * 10 + ["b"] * 10 + [None] * 10
    found = chosen(frame.assign(split=split, group=groups), share=0.9)
    assert found.of == pytest.approx(frame.flops[:8].sum())
    assert found.notes[-2:] == (
        "left out: 10 rows whose group is empty",
        "left out: 10 rows of group b, which has no target rows",
    )


def test_one_blank_loss_is_said_to_make_a_pool_of_a_study(chosen, frame):
    table = frame.assign(
        loss=frame.loss.where(frame.index != 5), split=["train"] * 24 + ["test"] * 6
    )
    said = "23 rows have a loss and count as run already; 1 without one are candidates"
    assert said in chosen(table, share=1.0).notes
    with pytest.raises(InputError, match=said):
        chosen(table, share=0.5)


@pytest.mark.parametrize("n_measured", [0, 2])
def test_fewer_losses_than_parameters_begin_with_the_cheapest(chosen, frame, n_measured):
    found = chosen(frame.assign(loss=frame.loss.where(frame.index < n_measured)), share=0.3)
    cheapest = [i for i in frame.flops.argsort() if i >= n_measured][: 5 - n_measured]
    assert list(found.rows[: len(cheapest)]) == cheapest
    assert (len(found.rows) == 5) == (n_measured == 0)  # nothing is measured: nothing is fitted
    table = frame.drop(columns="loss") if n_measured == 0 else frame
    assert chosen(table, share=0.3).rows[:2] == (0, 1)


@pytest.mark.parametrize("law", ["a - b*log(N)", "A - B*N", "A + B*N"])
def test_laws_that_are_linear_in_their_parameters_have_a_choice(chosen, frame, law):
    """With coefficients of 1 the first two lie below 0 at every row, where no descent begins."""
    found = chosen(frame, law)
    assert found.rows[:2] == (0, 1)
    assert len(found.rows) > 4
    assert all(2.8 < loss < 3.2 for loss in found.predicted.values())  # 2.5 to 2.7 by the true law


def test_the_share_that_is_advised_buys_the_cheapest(chosen, frame):
    with pytest.raises(InputError, match=r"Raise it to 0\.00029 or more"):
        chosen(frame, share=0.00028)  # 0.00028024 is needed
    assert chosen(frame, share=0.00029).rows == (0,)


def test_the_bill_bears_rounding(chosen, frame):
    """3 of 10 runs of 0.1, which sum up to more than 0.3."""
    table = frame.iloc[np.r_[0:10, 27:30]].assign(flops=0.1, split=["train"] * 10 + ["test"] * 3)
    assert len(chosen(table, "params-only", share=0.3).rows) == 3


def test_a_target_row_needs_no_cost(chosen, frame):
    table = frame.assign(
        flops=frame.flops.where(frame.index < 24), split=["train"] * 24 + ["test"] * 6
    )
    assert chosen(table).of == pytest.approx(frame.flops[:24].sum())
    assert chosen(table).rows == chosen(table.assign(split=table.split.str.title())).rows
    assert chosen(table).target == "split=test"


def test_rows_keep_the_numbers_of_the_file(chosen, frame):
    table = pd.concat([frame.iloc[:1], frame])  # a row twice, and some left out by a condition
    found, whole = chosen(table, where=("N>2e7",)), chosen(frame, where=("N>2e7",))
    assert found.rows == tuple(r + 1 for r in whole.rows)
    assert min(whole.rows) == 5


def test_more_rows_than_memory_holds_are_refused(chosen, frame):
    many = pd.DataFrame({"N": np.geomspace(1e7, 1e9, 5001), "loss": 3.0, "flops": 1.0})
    with pytest.raises(InputError, match="5001 rows are chosen from at once"):
        chosen(many, "params-only", options=Options(seed=1))


def test_a_target_may_be_cut_by_a_column_of_labels(chosen, frame):
    """Which `fit` would refuse as a mixture of two evaluation sets."""
    table = frame.assign(eval_set=["train"] * 24 + ["test"] * 6)
    split = frame.assign(split=["train"] * 24 + ["test"] * 6)
    replayed = chosen(split)
    assert chosen(table, target="eval_set=test").rows == replayed.rows
    assert any("this replays a study" in note for note in replayed.notes)
