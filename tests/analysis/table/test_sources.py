"""Where tables come from beside a file of one's own: pipes, patterns, folders, other tools, other units."""

import io
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest

from analysis.choices import law_of
from analysis.errors import InputError
from analysis.fitting.dataset import prepare
from analysis.laws import library
from analysis.table import load
from analysis.table.columns import parse_columns

N = np.array([31e6, 74e6, 160e6, 350e6])
FRAME = pd.DataFrame({"params": N, "tokens": 20 * N[::-1], "loss": [4.58, 3.36, 2.76, 2.54]})


def piped(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return load.load("-")


def test_a_pipe_carries_any_container(monkeypatch, tmp_path):
    FRAME.to_parquet(tmp_path / "a.parquet")
    FRAME.to_csv(tmp_path / "a.csv.gz", index=False)
    lines = FRAME.to_json(orient="records", lines=True).encode()
    tables = [FRAME.to_csv(index=False, sep=";").encode(), lines]
    tables += [(tmp_path / n).read_bytes() for n in ("a.parquet", "a.csv.gz")]
    for data in tables:
        table = piped(monkeypatch, data)
        assert table.source == "standard input"
        assert table.frame.n_params.to_numpy(float) == pytest.approx(N)
    with pytest.raises(InputError, match="nothing came on standard input"):
        piped(monkeypatch, b"")


def test_a_pattern_and_a_folder_are_one_table_and_say_of_what(tmp_path):
    FRAME[:2].to_csv(tmp_path / "a.csv", index=False)
    FRAME[2:].to_csv(tmp_path / "b.csv", index=False)
    for source in (tmp_path, f"{tmp_path}/*.csv"):
        table = load.load(source, where=("file!=c.csv",))
        assert table.frame.n_params.to_numpy(float) == pytest.approx(N)
        assert "2 tables as one: a.csv, b.csv" in table.notes
    assert len(load.load(tmp_path, where=("file=b.csv",)).frame) == 2
    with pytest.raises(InputError, match="no file matches"):
        load.load(f"{tmp_path}/*.tsv")
    FRAME.rename(columns={"loss": "val_loss"}).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(InputError, match=r"c\.csv lacks 'loss' than .*a\.csv"):
        load.load(tmp_path)


def test_a_workbook_is_read_by_its_first_sheet(tmp_path):
    pytest.importorskip("openpyxl")
    FRAME.assign(tokens=["0.7B", "3.2B", "1.48B", "620M"]).to_excel(
        tmp_path / "runs.xlsx", index=False
    )
    table = load.load(tmp_path / "runs.xlsx")
    assert list(table.frame.n_tokens) == [0.7e9, 3.2e9, 1.48e9, 620e6]
    assert table.frame.n_params.to_numpy(float) == pytest.approx(N)


def test_a_folder_of_trainer_states_is_a_row_per_run_and_step(tmp_path):
    for run, loss in (("small", 3.0), ("large", 2.5)):
        for step in (500, 1000):
            log = [
                {"step": s, "loss": loss + 100 / s, "epoch": s / 1000}
                for s in range(500, step + 1, 500)
            ]
            log += [{"step": step, "eval_loss": loss, "num_input_tokens_seen": step * 4096}]
            folder = tmp_path / run / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            state = {"global_step": step, "log_history": log}
            (folder / "trainer_state.json").write_text(json.dumps(state))
            (folder / "config.json").write_text("{}")
    table = load.load(tmp_path, where=("eval_loss>0",))
    assert sorted(zip(table.frame.trial_id, table.frame.val_loss, strict=True)) == [
        ("large", 2.5),
        ("small", 3.0),
    ]
    assert list(table.frame.n_tokens) == [4096_000, 4096_000]


def test_a_folder_of_event_files_is_a_column_per_scalar(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for run in ("a", "b"):
        log = EventFileWriter(str(tmp_path / run))
        for step in (10, 20):
            for tag, value in (("eval/loss", 3.0 - step / 100), ("tokens", 1000.0 * step)):
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                log.add_event(Event(step=step, summary=summary))
        log.close()
    table = load.load(tmp_path)
    assert list(table.frame.trial_id) == ["a", "a", "b", "b"]
    assert table.frame.val_loss.to_numpy(float) == pytest.approx([2.9, 2.8] * 2)
    assert list(table.frame.n_tokens) == [1e4, 2e4] * 2


def test_names_that_are_common_are_taken_and_a_note_gives_the_option():
    frame = FRAME.rename(columns={"params": "model/n_params", "loss": "eval/loss"})
    table = load.load(frame)
    assert len(prepare(table, library.get("params-only"))) == 4
    [note] = [n for n in table.notes if "by their names" in n]
    assert "--columns 'loss=eval/loss,D=tokens,N=model/n_params'" in note
    scaled = FRAME.assign(params_m=FRAME.params / 1e6, pflops=1.0).drop(columns="params")
    found = load.load(scaled).frame
    assert found.n_params.to_numpy() == pytest.approx(N)
    assert list(found.train_flops) == [1e15] * 4
    for name, cells in (
        ("params_mrd", FRAME.params / 1e9),
        ("params", ["31MM", "74 mio", "0.16 billions", "350m"]),
    ):
        other = FRAME.drop(columns="params").assign(**{name: cells})
        assert load.load(other).frame.n_params.to_numpy() == pytest.approx(N), name
    assert law_of(load.load(FRAME)) == "chinchilla"
    assert law_of(load.load(FRAME.drop(columns="params"))) == "data-only"


def test_two_columns_that_may_be_one_quantity_are_asked_for_and_the_advice_works():
    frame = FRAME.assign(total_tokens=FRAME.tokens * 2, seen_loss=1.0)
    table = load.load(frame)
    with pytest.raises(
        InputError, match=r"tokens and total_tokens may both be it\. Say which"
    ) as e:
        load.need(table, ("n_tokens",), "chinchilla")
    option = str(e.value).rpartition("--columns ")[2].rstrip(".")
    chosen = load.load(frame, dict(part.split("=") for part in option.split(",")))
    assert list(chosen.frame.n_tokens) == list(FRAME.tokens)
    same = load.load(FRAME.assign(total_tokens=FRAME.tokens))  # the same cells: either will do
    assert list(same.frame.n_tokens) == list(FRAME.tokens)


def test_a_logarithm_says_its_base_or_is_asked_for():
    logs = pd.DataFrame(
        {
            "log2_tokens": np.log2(FRAME.tokens),
            "log_params": np.log10(FRAME.params),
            "loss": FRAME.loss,
        }
    )
    table = load.load(logs)
    assert table.frame.n_tokens.to_numpy() == pytest.approx(FRAME.tokens.to_numpy())
    with pytest.raises(InputError, match="and e\\*\\*log_params may both be N") as error:
        law_of(table)
    advice = re.search(r"--columns '(.*)'", str(error.value))[1]
    assert law_of(load.load(logs, parse_columns(advice))) == "chinchilla"
    days = FRAME.assign(pflop_days=6 * FRAME.params * FRAME.tokens / 8.64e19).drop(columns="tokens")
    assert law_of(load.load(days)) == "chinchilla"


def test_a_unit_in_a_name_that_its_cells_contradict_is_asked_for():
    said = FRAME.rename(columns={"params": "params (M)"})
    with pytest.raises(InputError, match=r"params \(M\) and params \(M\)\*1e6 may both be N"):
        law_of(load.load(said))
    right = said.assign(**{"params (M)": FRAME.params / 1e6})
    assert load.load(right).frame.n_params.to_numpy() == pytest.approx(FRAME.params.to_numpy())


def test_a_name_of_many_checkpoints_is_a_run():
    names = np.repeat(["a", "b"], 12)
    tokens = np.tile(np.geomspace(1e8, 1e10, 12), 2)
    rows = {
        "Name": names,
        "N": np.repeat([1e8, 2e8], 12),
        "D": tokens,
        "loss": 2 + 1e3 * tokens**-0.4,
    }
    history = pd.DataFrame(rows)
    assert list(load.load(history).frame.trial_id) == list(names)
    sizes = history.groupby("Name").head(4)  # a few runs of a size, or a family, are no run
    assert "trial_id" not in load.load(sizes).frame


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("nats", 1.0),
        ("bits", np.log(2)),
        ("bpb=4.2", 4.2 * np.log(2)),
        ("bpb=width", 4 * np.log(2)),
    ],
)
def test_losses_in_another_unit_become_nats(unit, factor):
    column = "val_bits" if unit == "bits" else "val_bpb"
    frame = FRAME.rename(columns={"loss": column}).assign(width=4)
    table = load.load(frame, unit=unit)
    assert table.frame.val_loss.to_numpy(float) == pytest.approx(FRAME.loss * factor)
    plain = load.load(FRAME.rename(columns={"loss": "perplexity"}), unit="ppl")
    assert plain.frame.val_loss.to_numpy(float) == pytest.approx(np.log(FRAME.loss))


def test_a_unit_that_says_too_little_is_asked_for():
    frame = FRAME.rename(columns={"loss": "val_bpb"})
    with pytest.raises(InputError, match="'val_bpb' is taken with --unit bpb=BYTES_PER_TOKEN"):
        load.need(load.load(frame), ("val_loss",), "chinchilla")
    with pytest.raises(InputError, match="needs the bytes of a token"):
        load.load(frame, unit="bpb")
    with pytest.raises(InputError, match="'nits' is unknown; it must be nats, bits, ppl"):
        load.load(frame, unit="nits")
    with pytest.raises(InputError, match="records in nats per token"):
        load.load("bundled:nano-isoflop", unit="bits")


def test_results_newer_than_the_table_are_not_passed_over(records, tmp_path):
    from analysis.table import records as contract

    contract.save(records, tmp_path / "records.parquet")
    load.load(tmp_path)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "result.json").write_text("{}")
    with pytest.raises(InputError, match="1 results came after it was written; collect them first"):
        load.load(tmp_path)
