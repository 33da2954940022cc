import numpy as np
import pandas as pd
import pytest

from analysis.choices import Choices
from analysis.errors import InputError
from analysis.fitting.dataset import prepare
from analysis.fitting.result import Dropped
from analysis.laws import library
from analysis.table import load, records
from analysis.table.columns import parse_columns


def test_columns_are_mapped_by_letter_and_quotes_are_optional():
    parsed = parse_columns('N="Model Size",C=Training FLOP,loss=loss')
    assert parsed == {"n_params": "Model Size", "train_flops": "Training FLOP", "val_loss": "loss"}
    with pytest.raises(InputError, match="'N' is not NAME=COLUMN"):
        parse_columns("N")
    with pytest.raises(
        InputError, match="'los' is not a quantity a law knows; did you mean 'loss'"
    ):
        parse_columns("los=loss")


def test_a_mapped_column_that_is_absent_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Model Size,loss\n1,2\n")
    with pytest.raises(InputError, match="no column 'Model size'; did you mean 'Model Size'"):
        load.load(path, {"N": "Model size"})
    with pytest.raises(InputError, match="none is a name of ours"):
        load.load(tmp_path / "b.csv" if (tmp_path / "b.csv").write_text("q,s\n1,2\n") else "")


def test_tokens_follow_from_flops_and_the_note_says_so(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("N,C,loss\n1e8,6e18,3.0\n2e8,6e18,2.9\n")
    table = load.need(load.load(path), ("n_params", "n_tokens", "val_loss"), "chinchilla")
    assert list(table.frame.n_tokens) == [1e10, 5e9]
    assert "D taken as C / (6 N)" in table.notes[-1]


@pytest.mark.parametrize("value", ["nan", "-1", "0", "inf", "text"])
def test_unusable_values_are_refused_with_their_row(tmp_path, value):
    path = tmp_path / "a.csv"
    path.write_text(f"N,D,loss\n1e8,6e10,3.0\n2e8,6e10,{value}\n")
    with pytest.raises(InputError, match=r"val_loss is .* in row 2; law 'chinchilla' needs finite"):
        load.need(load.load(path), ("val_loss",), "chinchilla")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("flops_rule", "code"),
        ("tokenizer", "bytes"),
        ("data_fingerprint", "e" * 64),
        ("vocab_size", 7),
    ],
)
def test_mixtures_are_refused_and_where_takes_one_part(records_frame, tmp_path, column, value):
    records_frame.loc[:5, column] = value
    path = records.save(records_frame, tmp_path / "records.csv")
    with pytest.raises(InputError, match=f"the rows mix {column}"):
        load.load(path)
    table = load.load(path, where=(f"{column}={value}",))
    assert len(table.frame) == 6
    assert table.dropped[-1].n_rows == 18


@pytest.fixture
def records_frame(simulate, paper_loss):
    return simulate(paper_loss)


def test_diverged_and_failed_runs_are_dropped_with_reasons(records_frame, tmp_path):
    for row, status in ((0, "diverged"), (1, "failed"), (2, "failed")):
        records_frame.loc[row, ["val_loss", "val_bpb"]] = np.nan
        records_frame.loc[row, ["status", "status_reason"]] = [status, "because"]
    table = load.load(records.save(records_frame, tmp_path / "r.parquet"))
    assert {d.reason: d.n_rows for d in table.dropped} == {
        "the run diverged": 1,
        "the run failed": 2,
    }
    assert len(table.frame) == 21
    assert table.frame.train_flops.equals(table.frame.train_flops_paper)
    with pytest.raises(InputError, match="none of the 3 rows is of a finished run"):
        load.load(records.save(records_frame.iloc[:3], tmp_path / "s.parquet"))


def test_where_compares_numbers_and_text(records_frame, tmp_path):
    path = records.save(records_frame, tmp_path / "r.parquet")
    assert (
        load.load(path, where=("mean_recurrence>=8", "preset=140m")).frame.mean_recurrence.min()
        == 8
    )
    assert load.load(path, where=("mu>=8", "D>1e9")).frame.mean_recurrence.min() == 8
    for bad, message in (
        ("mean_recurence>2", "COLUMN OP VALUE .* did you mean 'mean_recurrence'"),
        ("mean_recurrence>two", "'two' is not"),
        ("mean_recurrence>99", "no row meets"),
    ):
        with pytest.raises(InputError, match=message):
            load.load(path, where=(bad,))


def test_bundled_points_are_the_papers_and_say_so():
    table = load.load("bundled:parcae-140m")
    assert len(table.frame) == 36
    assert "not measured here" in table.origin
    assert "arXiv:2604.12946" in table.origin
    with pytest.raises(InputError, match="did you mean 'parcae-140m'"):
        load.load("bundled:parcae-140")


def test_hash_is_of_the_rows_and_not_of_the_file(records_frame, tmp_path):
    a = load.load(records.save(records_frame, tmp_path / "a.parquet"))
    b = load.load(records.save(records_frame, tmp_path / "b.csv"))
    assert a.sha256 == b.sha256
    fewer = load.load(tmp_path / "a.parquet", where=("mean_recurrence>2",))
    assert fewer.sha256 != a.sha256


def test_values_may_be_written_to(tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame({"N": [1e8, 2e8], "loss": [3.0, 2.9]}).to_csv(path, index=False)
    column = load.columns_of(load.load(path), ("n_params",))["n_params"]
    column[0] = 5.0  # pandas 3 hands out read-only views
    assert column[0] == 5.0


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "D,val_bpb",
            "1e9,1.1",
            "says it holds bits; .* Convert it with --unit bpb=BYTES_PER_TOKEN",
        ),
        ("D,ppl", "1e9,20", "says it holds a perplexity; .* --unit ppl"),
        ("D,loss", "1e9,31.5", "losses go from 31.5 to 31.5, as perplexities .* --unit ppl"),
        ("D,loss", "1e9,9.2\n2e9,14\n4e9,27\n8e9,8", "losses go from 8 to 27, as perplexities"),
        ("D,loss", "1e9,3.2\n2e9,4\n4e9,27\n8e9,3", "27; .* 1 of 4 rows are that high, as runs"),
    ],
)
def test_a_loss_in_another_unit_is_refused(tmp_path, header, row, message):
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{row}\n")
    column = header.partition(",")[2]
    with pytest.raises(InputError, match=message):
        load.load(path, {"D": "D", "loss": column})


def test_small_numbers_are_noted_and_a_factor_converts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("params_m,tokens_b,a*2,loss\n70,1.5,1,3.2\n140,2.5,2,3.0\n")
    table = load.load(path, parse_columns("N=params_m,D=tokens_b,loss=loss"))
    assert [n.partition(":")[0] for n in table.notes] == [
        "n_tokens is at most 2.5",
        "n_params is at most 140",
    ]
    scaled = load.load(path, parse_columns("N=params_m*1e6,D=tokens_b*1e9,loss=loss"))
    assert scaled.notes == ()
    assert list(scaled.frame.n_params) == [70e6, 140e6]
    assert list(scaled.frame.n_tokens) == [1.5e9, 2.5e9]
    # a column that is really called so is not taken apart
    assert list(load.load(path, {"x": "a*2"}).frame.x) == [1, 2]


def test_nats_and_bits_that_contradict_each_other_are_refused(records_frame, tmp_path):
    records_frame.loc[0, "val_bpb"] = records_frame.loc[0, "val_bpb"] * 1.1
    path = records.save(records_frame, tmp_path / "records.csv")
    with pytest.raises(InputError, match="must hold with one number"):
        load.load(path)


def test_another_room_registers_a_reader_for_a_kind_of_source(records, monkeypatch):
    monkeypatch.setattr(load, "_READERS", {})
    lost = Dropped(reason="the run has no result yet", n_rows=1)
    reader = load.Reader(
        claims=lambda text: text.startswith("far:"),
        read=lambda text: load.Found(frame=records, where=text, dropped=(lost,), notes=("n",)),
    )
    load.register("far", reader)
    table = load.load("far:away", where=("mean_recurrence>2",))
    assert table.source == "sweep simulated (far:away)"
    assert [d.n_rows for d in table.dropped] == [1, 4]
    assert table.notes == ("n",)
    assert table.flops_rule == "paper"
    with pytest.raises(InputError, match="--columns: far:away holds records"):
        load.load("far:away", {"N": "x"})
    with pytest.raises(InputError, match=r"reads 'fa' sources; did you mean 'far'.*bundled, far"):
        load.load("fa:away")


def test_a_frame_has_its_index_its_levels_and_its_repeated_names():
    frame = pd.DataFrame({"N": [1e8, 2e8], "D": [1e9, 2e9], "loss": [3.1, 3.0]})
    levels = frame.set_axis(
        pd.MultiIndex.from_tuples([("N", ""), ("D", ""), ("loss", "mean")]), axis=1
    )
    twins = pd.concat([frame, frame[["loss"]]], axis=1)
    for given, loss in (
        (frame.set_index(["N", "D"]), "loss"),
        (levels, "loss/mean"),
        (twins, "loss"),
    ):
        table = load.load(given, {"N": "N", "D": "D", "loss": loss})
        assert table.frame.n_params.tolist() == [1e8, 2e8]
        assert table.frame.val_loss.tolist() == [3.1, 3.0]
    other = load.load(pd.concat([frame, frame[["loss"]] + 1], axis=1))
    assert other.unsure == {"val_loss": ("loss#1", "loss#2")}


@pytest.mark.parametrize("made", [pd.to_timedelta, pd.to_datetime])
def test_a_time_is_no_number(made):
    frame = pd.DataFrame({"N": made([1e8, 2e8], unit="s"), "D": [1e9, 2e9], "loss": [3.1, 3.0]})
    with pytest.raises(InputError, match="none of the 2 rows has one"):
        load.need(load.load(frame), ("n_params",), "chinchilla")


def test_the_highest_losses_are_of_the_rows_that_the_law_uses(loop_records):
    table = Choices.of(drop_highest=5).table(loop_records, "training")
    used = prepare(table, library.get("training")).table
    assert len(used.frame) == 24 - 5
    assert used.dropped[-1].n_rows == 5
    whole = prepare(Choices.of().table(loop_records), library.get("training")).table.frame
    assert used.frame.val_loss.max() == pytest.approx(whole.val_loss.nlargest(6).iloc[-1])
    with pytest.raises(InputError, match="a number from 1 to 23, of the 24 losses"):
        prepare(Choices.of(drop_highest=24).table(loop_records), library.get("training"))


@pytest.mark.parametrize("cell", ["crashed", ""])
def test_a_cell_without_a_number_is_no_highest_loss(cell):
    frame = pd.DataFrame({"D": [1e9, 2e9, 4e9, 8e9], "loss": ["3.4", cell, "3.2", "3.1"]})
    with pytest.raises(InputError, match="in row 2; law"):
        load.need(Choices.of(drop_highest=1).table(frame), ("val_loss",), "data-only")
    choices = Choices.of(drop_highest=1, where="loss>0")
    kept = load.need(choices.table(frame), ("val_loss",), "data-only")
    assert kept.frame.val_loss.tolist() == [3.2, 3.1]


def test_truths_and_times_are_compared_as_what_they_are():
    frame = pd.DataFrame({"D": [1e9, 2e9], "loss": [3.1, 3.0], "finished": [True, False]})
    frame["created"] = pd.date_range("2025-01-01", periods=2, tz="UTC")
    assert len(load.load(frame, where=("finished=True",)).frame) == 1
    assert load.load(frame, where=("finished!=true",)).frame.n_tokens.tolist() == [2e9]
    with pytest.raises(InputError, match="created holds no numbers"):
        load.load(frame, where=("created>2025-01-01",))


@pytest.mark.parametrize(
    ("column", "unit", "cure"),
    [("val_bpb", "bits", "bpb="), ("val_ppl", "bits", "ppl"), ("val_bits", "ppl", "bits")],
)
def test_a_unit_that_the_columns_name_contradicts_is_refused(column, unit, cure):
    frame = pd.DataFrame({"D": [1e9, 2e9], column: [1.1, 1.0]})
    with pytest.raises(InputError, match=rf"--unit {unit} is not what .*--unit {cure}"):
        load.load(frame, {"D": "D", "loss": column}, unit=unit)
