"""Tables as people have them. Every container, encoding and spelling below once was refused or misread."""

import bz2
import gzip
import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.table import load
from analysis.table.columns import parse_columns

N = np.array([31e6, 74e6, 160e6, 350e6])
D = np.array([155e6, 1.48e9, 12.8e9, 28e9])
LOSS = np.array([4.58252, 3.35875, 2.76222, 2.53905])
ROWS = [f"{n:.0f},{d:.0f},{v}" for n, d, v in zip(N, D, LOSS, strict=True)]
CSV = "\n".join(["N,D,loss", *ROWS]) + "\n"
FRAME = pd.DataFrame({"N": N, "D": D, "loss": LOSS})
RULED = "".join(f"| {line} |\n" for line in ("N,D,loss", "---,:--:,--:", *ROWS)).replace(",", " | ")


def same(table):
    for name, values in (("n_params", N), ("n_tokens", D), ("val_loss", LOSS)):
        assert table.frame[name].to_numpy(float) == pytest.approx(values, rel=1e-12)
    return True


def cells(n, d, loss, separator=","):
    rows = zip(map(n, N), map(d, D), map(loss, LOSS), strict=True)
    return "\n".join([separator.join(("N", "D", "loss")), *map(separator.join, rows)])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.CSV", CSV.encode()),
        ("a.tsv", CSV.replace(",", "\t").encode()),
        ("a.txt", CSV.replace(",", "|").encode()),
        ("a.csv", CSV.encode("utf-8-sig")),
        ("b.csv", CSV.encode("utf-16")),
        ("c.csv", CSV.encode("utf-16-le")),
        ("d.csv", CSV.replace("\n", "\r\n").encode()),
        ("e.csv", CSV.replace("loss", " loss ").encode()),
        ("f.csv", ("\n\n" + CSV).encode()),
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("a.csv.bz2", bz2.compress(CSV.encode())),
        (
            "a.jsonl",
            "\n".join(
                json.dumps(dict(zip(("N", "D", "loss"), row, strict=True)))
                for row in zip(N, D, LOSS, strict=True)
            ).encode(),
        ),
        ("a.json", json.dumps({"N": list(N), "D": list(D), "loss": list(LOSS)}).encode()),
        ("b.json", json.dumps(FRAME.to_dict("split")).encode()),
        ("c.json", json.dumps({"project": "p", "runs": FRAME.to_dict("records")}).encode()),
        ("d.json", json.dumps({f"r{i}": row for i, row in FRAME.T.to_dict().items()}).encode()),
        ("a.dat", FRAME.to_string(index=False).encode()),
        ("g.csv", ("# of last week\n# four runs\n" + CSV).encode()),
        ("h.csv", ("sep=;\n" + CSV.replace(",", ";")).encode()),
        ("i.csv", (CSV + ",,\n").encode()),
        ("b.txt", RULED.encode()),
        ("j.csv", ("Runs of May\n\n" + CSV).encode()),
        ("k.csv", CSV.replace("N,", "# params,", 1).encode()),
        ("l.csv", ("# N, D, loss and more\n" + CSV).encode()),
        ("c.txt", f"# {CSV}".replace(",", " ").encode()),  # as numpy's savetxt
        (
            "m.csv",
            "".join(
                ["# Parameter,D,loss,State\n"]
                + [f'"{n:,.0f}",{d},{v},done\n' for n, d, v in zip(N, D, LOSS, strict=True)]
            ).encode(),
        ),
    ],
)
def test_containers_encodings_and_separators_give_the_same_rows(tmp_path, name, data):
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / name).write_bytes(data)
    assert same(load.load(folder / name))
    assert same(load.load(folder))  # the only table there


@pytest.mark.parametrize(
    "text",
    [
        cells("{:.0f}".format, "{:.0f}".format, lambda v: f"{v}".replace(".", ","), ";"),
        cells('"{:,.0f}"'.format, '"{:,.0f}"'.format, str),
        cells(lambda v: f"{v / 1e6}M", lambda v: f"{v / 1e9}B", str),
        cells(lambda v: f"{v / 1e6} million", lambda v: f"{v / 1e9}bn tokens", "**{}**".format),
        cells("'{:e}".format, "{:_.0f}".format, lambda v: f'"{v}"'.replace(".", ",")),
        cells(lambda v: f"{v / 1e6}x10^6", lambda v: f"{v:,.0f}".replace(",", " "), "{}*".format),
        cells(lambda v: f"{v:,.0f}".replace(",", "."), "{:.0f}".format, lambda v: f"{v}", ";"),
        cells(
            lambda v: f"{v / 1e6} Mio".replace(".", ","),
            lambda v: f"{v / 1e9} Mrd".replace(".", ","),
            lambda v: f"{v}".replace(".", ","),
            ";",
        ),
        cells(lambda v: f"\u2248{v / 1e6}M", "{:.0f}".format, "{} \u00b1 0.004".format),
        cells("{:.0f}".format, "{:.0f}".format, "{} (0.004)".format),
        cells("{:.0f}".format, "{:.0f}".format, "{}+/-0.02".format),
        cells(*[lambda v: f"{v:.5e}".replace(".", ",")] * 3, "\t"),
        cells(
            lambda v: f"{v / 1e6:.3f}x10^6".replace(".", ","),
            lambda v: f"{v / 1e9:.3f} \u00b7 10^9".replace(".", ","),
            lambda v: f"{v}".replace(".", ","),
            "\t",
        ),
    ],
)
def test_numbers_are_read_as_people_write_them(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert same(load.load(tmp_path / "a.csv"))


def test_a_comma_that_could_be_either_is_decimal_in_a_loss_and_groups_in_a_count(tmp_path):
    (tmp_path / "a.csv").write_text('D,loss\n"155,000","3,245"\n"310,000","3,112"\n')
    frame = load.load(tmp_path / "a.csv").frame
    assert list(frame.n_tokens) == [155e3, 310e3]
    assert list(frame.val_loss) == [3.245, 3.112]
    (tmp_path / "c.csv").write_text('D,loss\n"2,018e+08","3,245"\n"3,112E9","3,112"\n')
    assert list(load.load(tmp_path / "c.csv").frame.n_tokens) == [2.018e8, 3.112e9]
    (tmp_path / "b.csv").write_text('x,y\n"4,58",1\n"1,000,000",2\n')  # they contradict each other
    table = load.load(tmp_path / "b.csv")
    with pytest.raises(InputError, match=r"x is 4,58 in row 1.*Map another column"):
        load.need(table, ("x", "y"), "power")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("N,D,loss\n", r"has a header \(N, D, loss\) and no rows"),
        ("N,D,loss\n1,2,3\n1,2,3,4\n", "line 3 has 4 cells and the header 3"),
        ("N,D,loss,loss\n1,2,3,4\n", "it|none|needs"),
        (
            "1e8,2e9,3.1\n2e8,2e9,3.0\n",
            r"the first line holds numbers \(1e8, 2e9, 3.1\) and no names",
        ),
    ],
)
def test_a_file_that_is_no_table_gets_one_sentence(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load.need(load.load(tmp_path / "a.csv"), ("val_loss",), "chinchilla")
    assert "\n" not in str(error.value)


def test_a_repeated_column_is_one_when_equal_and_told_apart_when_not(tmp_path):
    (tmp_path / "a.csv").write_text("D,loss,loss\n1e9,3.1,3.1\n2e9,3.0,3.0\n")
    assert list(load.load(tmp_path / "a.csv").frame.val_loss) == [3.1, 3.0]
    (tmp_path / "b.csv").write_text("D,loss,loss\n1e9,3.1,4.1\n2e9,3.0,4.0\n")
    with pytest.raises(InputError, match=r"loss#1 and loss#2 may both be it"):
        load.need(load.load(tmp_path / "b.csv"), ("val_loss",), "chinchilla")
    chosen = load.load(tmp_path / "b.csv", parse_columns("D=D,loss=loss#2"))
    assert list(chosen.frame.val_loss) == [4.1, 4.0]


def test_a_name_may_hold_a_comma_a_sign_or_a_star(tmp_path):
    (tmp_path / "a.csv").write_text('"N (non-emb, M)",D=tokens,loss*\n31,1.5e8,4.5\n74,3e8,4.2\n')
    columns = parse_columns('N="N (non-emb, M)"*1e6,D="D=tokens",loss="loss*"')
    table = load.load(tmp_path / "a.csv", columns, ("D=tokens>2e8",))
    assert list(table.frame.n_params) == [74e6]
    bare = parse_columns("N=N (non-emb, M)*1e6,D=D=tokens,loss=loss*")
    assert list(load.load(tmp_path / "a.csv", bare).frame.n_params) == [31e6, 74e6]


def test_a_logarithm_is_named_and_its_advice_works(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("N,loss,log10_C\n31000000,4.58,16.4598\n74000000,3.83,17.2155\n")
    with pytest.raises(InputError, match=r"--columns 'N=N,loss=loss,C=10\*\*log10_C'"):
        load.load(path, parse_columns("N=N,loss=loss,C=log10_C"))
    table = load.load(path, parse_columns("N=N,loss=loss,C=10**log10_C"))
    assert table.frame.train_flops.to_numpy() == pytest.approx([10**16.4598, 10**17.2155])
    path.write_text("N,loss,C\n31000000,4.58,0.02883\n74000000,3.83,0.1642\n")
    with pytest.raises(
        InputError, match=r"at most 0.1642, and D = C / \(6 N\) needs FLOPs.*C\*1e18"
    ):
        load.need(load.load(path), ("n_tokens",), "chinchilla")


def test_exports_of_wandb_and_tensorboard_become_rows(tmp_path):
    (tmp_path / "chart.csv").write_text(
        "Step,owl-3 - eval/loss,owl-3 - eval/loss__MIN,owl-3 - eval/loss__MAX,lion-4 - eval/loss,"
        "lion-4 - eval/loss__MIN,lion-4 - eval/loss__MAX\n0,5.4,5.4,5.4,5.1,5.1,5.1\n9,4.6,4.6,4.6,,,\n"
    )
    chart = load.load(tmp_path / "chart.csv", parse_columns("run=run,D=Step*10,loss=eval/loss"))
    assert sorted(zip(chart.frame.trial_id, chart.frame.val_loss, strict=True)) == [
        ("lion-4", 5.1),
        ("owl-3", 4.6),
        ("owl-3", 5.4),
    ]
    (tmp_path / "board.csv").write_text(
        "run,tag,step,value\na,eval/loss,1,3.0\na,eval/loss,2,2.9\na,lr,1,0.1\nb,eval/loss,1,2.8\n"
    )
    board = load.load(tmp_path / "board.csv", parse_columns("run=run,D=step*1e6,loss=eval/loss"))
    assert list(board.frame.val_loss) == [3.0, 2.9, 2.8]
    (tmp_path / "trainer_state.json").write_text(
        json.dumps(
            {"global_step": 2, "log_history": [{"step": 1, "loss": 2.9}, {"step": 2, "loss": 2.8}]}
        )
    )
    state = load.load(tmp_path / "trainer_state.json", parse_columns("D=step*1e6,loss=loss"))
    assert list(state.frame.n_tokens) == [1e6, 2e6]


_PIECES = st.sampled_from(
    [
        *(
            "1",
            "31.0M",
            "1,5",
            "1.234,5",
            "31,000,000",
            "",
            "nan",
            "-",
            "crashed",
            "1e18",
            "'1e18",
            "inf",
        ),
        *(
            "0",
            "3 FLOPs",
            "1e999",
            "10^18",
            '"',
            "a;b",
            "\x00",
            "\xe9",
            "1\t2",
            "-3",
            "**2.9**",
            "\xb2",
        ),
    ]
)
_HEADERS = st.lists(
    st.sampled_from(
        ["N", "D", "loss", "T", "run", "mu", "budget", "seed", "", "loss", "x,y", "State"]
    ),
    min_size=1,
    max_size=6,
)


def test_no_table_ends_in_a_traceback(tmp_path):
    """20 s at most of random headers, cells, separators, encodings and cuts: rows, or one InputError."""
    ends = time.monotonic() + 15
    path = tmp_path / "a.csv"

    @settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        header=_HEADERS,
        rows=st.lists(st.lists(_PIECES, min_size=1, max_size=7), max_size=8),
        separator=st.sampled_from([",", ";", "\t", "|"]),
        encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"]),
        where=st.sampled_from(
            ["", "loss>0", "D<1e9", "State=finished", "run!=", "loss=", "N", "seed>=x"]
        ),
        cut=st.integers(0, 3),
    )
    def check(header, rows, separator, encoding, where, cut):
        if time.monotonic() > ends:
            return
        text = "\n".join(separator.join(row) for row in [header, *rows])
        data = text.encode(encoding, errors="replace")
        path.write_bytes(data[: len(data) - cut])
        try:
            table = load.load(path, where=(where,) if where else ())
            table = load.need(load.at_training_depth(table), ("val_loss", "n_tokens"), "chinchilla")
        except InputError:
            return
        assert pd.api.types.is_numeric_dtype(table.frame.val_loss)
        assert np.isfinite(table.frame.val_loss).all()

    check()


@pytest.mark.parametrize("name", ["T={}", "T{}", "loss_T{}", "val_loss@{}", "eval/loss T={}"])
def test_a_column_per_number_of_loops_becomes_a_row_each(tmp_path, name):
    loops = [1, 2, 4, 8, 16]
    wide = pd.DataFrame(
        {"run": ["a", "b"], **{name.format(t): [3 + 1 / t, 2.9 + 1 / t] for t in loops}}
    )
    wide.to_csv(tmp_path / "w.csv", index=False)
    frame = load.load(tmp_path / "w.csv").frame
    assert sorted(frame[frame.trial_id == "b"].n_loops) == loops
    assert frame.val_loss.max() == pytest.approx(4.0)
    wide.drop(columns="run").iloc[:1].to_csv(tmp_path / "one.csv", index=False)
    assert len(load.load(tmp_path / "one.csv").frame) == 5


def test_an_index_of_parquet_is_columns(tmp_path):
    FRAME.set_index(["N", "D"]).to_parquet(tmp_path / "a.parquet")
    assert same(load.load(tmp_path / "a.parquet"))


def test_parquet_with_text_that_is_no_utf8_is_said(tmp_path):
    path = tmp_path / "a.parquet"
    FRAME.assign(run=["first", "second", "third", "fourth"]).to_parquet(path, compression=None)
    path.write_bytes(path.read_bytes().replace(b"second", b"se\xffond"))
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as parquet"):
        load.load(path)


@pytest.mark.parametrize("name", ["w.csv", "w.json", "w.parquet", "w.xlsx", ""])
def test_columns_per_number_of_loops_are_turned_whatever_holds_them(tmp_path, name):
    loops = [1, 2, 4, 8]
    wide = pd.DataFrame({"run": ["a", "b"], "val_loss": [3.0, 2.9]})
    for t in loops:
        wide[f"train_loss_T{t}"] = [2 + 1 / t, 1.9 + 1 / t]
        wide[f"val_loss_T{t}"] = [3 + 1 / t, 2.9 + 1 / t]
    path = tmp_path / name
    if name.endswith(".csv"):
        wide.to_csv(path, index=False)
    elif name.endswith(".json"):
        wide.to_json(path, orient="records")
    elif name.endswith(".parquet"):
        wide.to_parquet(path)
    elif name.endswith(".xlsx"):
        pytest.importorskip("openpyxl")
        wide.to_excel(path, index=False)
    table = load.load(path if name else wide)
    assert sorted(table.frame.n_loops) == sorted(loops * 2)
    first = table.frame[table.frame.trial_id == "a"].sort_values("n_loops")
    assert first.val_loss.tolist() == pytest.approx([4.0, 3.5, 3.25, 3.125])
    assert set(table.unmapped) == {"train_loss", "val_loss (of the run)"}
