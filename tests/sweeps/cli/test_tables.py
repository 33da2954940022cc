"""Every table at 80 columns holds whole numbers and whole ids."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import api
from analysis.laws import library
from parcae_core.trial import DataConfig
from sweeps.cli.app import command
from sweeps.cli.tables import columns
from sweeps.cli.tables import plan as plan_table
from sweeps.cli.tables import status as status_table
from sweeps.design.corpora import Corpus, bytes_per_token, resolve_data
from sweeps.design.plan import plan
from sweeps.design.spec import load_spec
from sweeps.storage.files import DECISIONS
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec
from tests.sweeps.test_store import good_result, put, report

SPECS = sorted((Path(__file__).parents[3] / "sweeps" / "specs").glob("*.yaml"))


@pytest.fixture
def at_80(monkeypatch):
    """What is printed on a terminal of 80 columns."""
    out = io.StringIO()

    def console():
        return Console(file=out, force_terminal=True, color_system=None, width=80, markup=False)

    for module in (plan_table, status_table):
        monkeypatch.setattr(module, "console_for_people", console)
    return out


def shipped(path):
    spec = load_spec(path)
    vocabulary = {"bytes": 259, "characters": 12}.get(spec.data.tokenizer)
    config = DataConfig(
        corpus=spec.data.corpus,
        fingerprint="f" * 64,
        tokenizer=spec.data.tokenizer,
        vocab_size=vocabulary or int(spec.data.tokenizer.removeprefix("bpe-")),
    )
    if spec.design == "grid":  # several corpora
        return plan(spec, resolve_data(spec, str(path)), where=str(path))
    planned = plan(spec, config, where=str(path))
    return replace(planned, corpora=(Corpus(config=config, tokenizer=None, source=None),))


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_no_plan_is_cut_at_80_columns(path, at_80, tmp_path):
    planned = shipped(path)
    data = plan_table.plan_data(
        planned, Store(tmp_path, "x"), cpus=2, flops_per_s=1e12, tokens=1e11
    )
    plan_table.print_plan(data)
    short = at_80.getvalue()
    for group in columns.grouped(data["trials"]):
        steps = [t["n_steps"] for t in group]
        for n in (min(steps), max(steps)):
            assert f"{n:,}" in short
        tokens = [t["n_tokens"] for t in group]
        assert columns.span(tokens) in short
    plan_table.print_plan(data, every_trial=True)
    text = at_80.getvalue()
    for t in data["trials"]:
        assert t["trial_id"] in text
        assert f"{t['n_steps']:,}" in text
    table = [
        line for line in text.splitlines() if any(t["trial_id"] in line for t in data["trials"])
    ]
    assert len(table) == len(data["trials"])  # one line each, and no wider than the screen
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "e+" not in text
    assert len(short.splitlines()) <= 24


def test_no_status_is_cut_at_80_columns(at_80, tmp_path):
    planned = tiny_plan(budgets_flops=[4e8, 8e8, 9.876e12], mean_recurrence=[1, 2], seeds=[0, 1])
    store = Store(tmp_path, planned.name)
    store.write_plan(planned, write_spec(tmp_path / "spec"))
    for trial in planned.trials[:4]:
        put(store, trial, good_result(trial))
    running = planned.trials[-1]
    report(store, running, state="running", step=123456, loss=12.3456, tokens_per_s=1234567.0)
    report(store, planned.trials[5], state="failed", reason="ValueError: [no] such thing")
    data = status_table.status_data(store)
    status_table.print_status(data)
    status_table.print_status(data, every_trial=True)
    text = at_80.getvalue()
    assert "…" not in text
    assert text.count(running.trial_id) == 2
    assert text.count(f"123,456/{running.n_steps:,}") == 2
    assert "2.5000 at 2" in text  # of the first budget, after two loops
    assert f"{planned.trials[5].trial_id}: ValueError: [no] such thing" in text
    assert all(t.trial_id in text for t in planned.trials)
    rows = [line for line in text.splitlines() if "runs" not in line and "tiny" not in line]
    assert max(map(len, rows)) <= 80


LOOPED = ("--where", "mean_recurrence>1")
CHEAP = ("--interval", "linear", "--starts", "2")
FITS = {
    "recurrence": ("bundled:nano-isoflop",),
    "isoflop": ("bundled:nano-isoflop", "--over", "D", *LOOPED),
    "power": ("points.csv", "--columns", "x=N,y=D"),
    "accuracy": ("points.csv", "--columns", "y=score,loss=loss", *CHEAP),
    "kaplan": ("points.csv", *CHEAP),
    "chinchilla": ("points.csv", *CHEAP),
    "frontier": ("points.csv", "--columns", "C=C,loss=loss", *CHEAP),
    "params-only": ("points.csv", "--where", "D>5e9", "--where", "D<2e10", *CHEAP),
    "data-only": ("points.csv", "--where", "N>5e7", "--where", "N<2e8", *CHEAP),
    "repeated": ("points.csv", *CHEAP),
    "E + A*N**-alpha + B*D**-beta": ("points.csv", "--interval", "bootstrap", "--resamples", "5"),
}
FEW = ("bundled:nano-isoflop", "--where", "mean_recurrence>4", "--where", "budget_flops<1e12")
FITS |= dict.fromkeys(library.TEST_TIME_FORMS, FEW)
FITS |= {n: ("bundled:nano-isoflop", *CHEAP) for n in ("training", "unified", "iso-depth")}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A small grid of sizes and tokens whose losses, and scores, follow known laws to 0.1 %."""
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(n.size))
    loss = (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * noise
    score = 0.25 + 0.7 / (1 + np.exp(-3 * (3 - loss)))
    frame = pd.DataFrame({"N": n, "D": d, "U": d / 3, "C": 6 * n * d, "loss": loss, "score": score})
    folder = tmp_path_factory.mktemp("points")
    frame.to_csv(folder / "points.csv", index=False)
    return folder


def test_every_law_is_among_those_whose_report_is_looked_at():
    assert set(FITS) >= {*library.LAWS, *library.OTHER_LAWS}


@pytest.mark.parametrize("law", FITS)
def test_no_fit_is_cut_at_80_columns(law, points, capsys, monkeypatch):
    monkeypatch.chdir(points)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    fit_table, kept = api.fit_table, []
    monkeypatch.setattr(api, "fit_table", lambda *of: kept.append(fit_table(*of)) or kept[0])
    with suppress(SystemExit):
        command()(["fit", *FITS[law], "--law", law])
    shown, [result] = capsys.readouterr().out, kept
    words = shown.split()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "..." not in shown
    if len(result.tables.get("curves", [])) < 2:  # those are a table of their own, below
        for p in result.params:
            assert "no estimate" in shown if p.value is None else f"{p.value:.5g}" in words
    else:
        assert all(row["run"] in words for row in result.tables["curves"])
    assert result.data_sha256[:12] in words
    for sentence in (*result.notes, *result.problems):
        assert " ".join(sentence.split()) in " ".join(words)


@pytest.mark.slow
def test_no_run_is_cut_at_80_columns(tmp_path):
    """A real one on a terminal of 80 x 24: its bars, its lines and what it says at the end."""
    name = "a-sweep-whose-name-is-nearly-as-long-as-a-paper"
    spec = write_spec(tmp_path, name=name, mean_recurrence=[2], budgets_flops=[3e9], seeds=[10])
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", "run", spec.name, "--no-ray", "--cpus", "1"],
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment | {"TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that nobody has the other end any more
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    [trial] = Store(tmp_path / "runs", name).stored_trials()
    assert f"{trial.trial_id} C=3e9 mu=2 seed=10" in text
    assert re.search(rf"\d+/{trial.n_steps:,} loss \d\.\d{{3}}", text)  # beside the bar
    assert re.search(r"done, val_loss \d\.\d{4} \(1 of 1 finished\)", " ".join(text.split()))
    assert "1 done of 1 trials" in " ".join(text.split())
    assert "…" not in text
    lines = re.split(r"[\r\n]+", text)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80


def test_decisions_of_an_adaptive_sweep_fit_80_columns_and_end_in_the_interval(at_80, tmp_path):
    planned = tiny_plan(budgets_flops=[4e8, 8e8, 9.876e12], mean_recurrence=[2, 4, 8])
    store = Store(tmp_path, planned.name)
    store.write_plan(planned, write_spec(tmp_path / "spec"))
    for trial in planned.trials[:6]:
        put(store, trial, good_result(trial))
    lines = []
    for i, trial in enumerate(planned.trials[:6]):
        now = {
            "target": "gamma_mu",
            "value": 0.71,
            "low": 0.71 - 1 / (i + 1),
            "high": 0.71 + 1 / (i + 1),
        }
        lines.append(
            {
                "n": i + 1,
                "trial_id": trial.trial_id,
                "mean_recurrence": trial.mean_recurrence,
                "budget_flops": trial.budget_flops,
                "seed": i % 2,
                "reason": "basins disagree",
                "estimate": None if i < 2 else now | {"n_runs": i, "flops": 1.2345e12 * i},
            }
        )
    lines.append({"n": 7, "stop": "the interval is reached", "estimate": lines[-1]["estimate"]})
    (store.root / DECISIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = status_table.status_data(store)
    assert data["estimate"] == lines[-1]["estimate"]
    assert len(data["trials"]) == 6  # the other three are candidates
    status_table.print_status(data)
    text = at_80.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(t.trial_id in text for t in planned.trials[:6])
    assert "+- gamma_mu" in text
    last = text.splitlines()[-2:]
    assert last[0] == (
        "gamma_mu 0.71 [0.5433, 0.8767] by 5 runs of 6.17e12 FLOPs, from the training law"
    )
    assert last[1] == "the design has ended: the interval is reached"
    halves = [line.split()[-1] for line in text.splitlines() if "basins disagree" in line]
    assert halves[2:] == ["0.33", "0.25", "0.2", "0.17"]


def test_status_of_many_decisions_shows_the_last_ten(at_80, tmp_path):
    [trial, *_] = tiny_plan().trials
    line = {
        "trial_id": trial.trial_id,
        "mean_recurrence": 2,
        "budget_flops": 4e8,
        "seed": 0,
        "reason": "replica",
        "estimate": None,
    }
    data = {"name": "x", "folder": "x", "trials": [], "damaged": {}, "counts": {}, "estimate": None}
    data |= {"design": [line] * 30, "made_flops_paper": {"own": 0.0, "separate": 0.0}}
    status_table.print_status(data)
    assert at_80.getvalue().count("replica") == 1  # the same in every row: in the title
    assert at_80.getvalue().count("\n") < 20
    assert "30 decisions, the last 10 here, all with --trials" in at_80.getvalue()


def test_numbers_are_written_as_people_write_them():
    assert [columns.count(n) for n in (512, 999_600, 11.2e9, 1.5e12)] == [
        "512",
        "1M",
        "11.2B",
        "1.5T",
    ]
    assert columns.span([2615, 336, 400], "{:,}".format) == "336-2,615"
    assert columns.span([7, 7]) == "7"
    assert [columns.digits(n) for n in (0.0123, 331, 12_345)] == ["0.012", "330", "12,000"]
    assert columns.listed([1, 2, 4]) == "1 2 4"
    assert columns.listed(range(1, 40)) == "1-39 (39)"


def test_a_narrow_terminal_leaves_columns_out_and_says_which():
    out = io.StringIO()
    console = Console(file=out, width=20)
    wide = columns.Column("wide", ["123456789012", "x"], rank=1)
    columns.print_table(console, "t", [columns.Column("trial", ["0f3a52c1b77e", "y"]), wide])
    assert "0f3a52c1b77e" in out.getvalue()
    assert "123456789012" not in out.getvalue()
    assert "without wide" in out.getvalue().replace("\n", " ")


def test_a_corpus_that_is_not_there_is_costed_and_marked(tmp_path, at_80):
    data = {"corpus": "none", "tokenizer": "bpe-1024"}
    spec_path = write_spec(tmp_path, data=data, model={"vocab_size": 1024}, budgets_flops=[1e11])
    spec = load_spec(spec_path)
    data = resolve_data(spec, str(spec_path), assume=True)
    planned = plan(spec, data, str(spec_path))
    store = Store(tmp_path, "x")
    unknown = plan_table.plan_data(planned, store)
    assert unknown["data"]["assumed"]
    assert {t["epochs"] for t in unknown["trials"]} == {None}
    shown = plan_table.plan_data(planned, store, tokens=1000)
    assert [t["epochs"] for t in shown["trials"]] == [t["n_tokens"] / 1000 for t in shown["trials"]]
    plan_table.print_plan(shown, every_trial=True)
    text = " ".join(at_80.getvalue().split())
    assert "assumed, since it is not there" in text
    assert "1k tokens, as given by --tokens" in text
    assert not any(t.trial_id in text for t in planned.trials)  # they are not final
    json.dumps(shown)


def test_a_corpus_that_is_there_is_counted(tmp_path):
    spec_path = write_spec(tmp_path)
    spec = load_spec(spec_path)
    planned = plan(spec, resolve_data(spec, str(spec_path)), str(spec_path))
    [text] = plan_table.plan_data(planned, Store(tmp_path, "x"))["texts"]
    [corpus] = planned.corpora
    read = sum(len(d.encode()) for d in corpus.source.documents("train"))
    assert text["train_tokens"] == read
    assert text["train_tokens_from"] == "one for each byte of its text"
    assert bytes_per_token(259) == 1.0
    assert bytes_per_token(32_768) == pytest.approx(4.2)
    assert 3.2 < bytes_per_token(8192) < 4.2


def test_a_long_line_of_a_report_is_broken_between_words(monkeypatch, capsys):
    line = "  note: 1e+18 FLOPs: the vertex is at mu = 2.17, inside the grid; the lowest is at 2, grid 2 to 12"
    columns.echo(line)
    assert capsys.readouterr().out == line + "\n"  # a pipe gets it as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    columns.echo(line)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 40
    assert shown.split() == line.split()
    assert shown.splitlines()[1].startswith(" " * 6)
