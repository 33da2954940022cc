"""`parcae eval` on a published-format checkpoint and real prepared text, through the command line."""

import json
import math
import sys

import pytest

from parcae_core.checkpoints.published import UpstreamCheckpoint, save_upstream
from parcae_core.checkpoints.published_config import upstream_settings
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError
from parcae_core.model.parcae import build_model
from parcae_core.presets import preset
from sweeps.cli.model import parse_loops
from tests.parcae_core.conftest import randomise
from tests.support.trained import trained_run


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(checkpoint folder, prepared data) of a small random model and real text."""
    root = tmp_path_factory.mktemp("eval")
    corpus = root / "corpus"
    corpus.mkdir()
    for i in range(40):
        (corpus / f"{i}.txt").write_text(f"Document {i}. " + "The whale swam on. " * 30)
    data = prepare(resolve(str(corpus)), tokenizer="bytes", row_tokens=65, root=root / "data")
    model = build_model(preset("nano"), seed=0)
    randomise(model)
    described = upstream_settings(model.config, mean_recurrence=3, mean_backprop_depth=2)
    save_upstream(UpstreamCheckpoint(model=model, settings=described), root / "checkpoint")
    return root / "checkpoint", data


def run(monkeypatch, capsys, *arguments):
    from sweeps.cli.app import main

    monkeypatch.setattr(sys, "argv", ["parcae", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_curve_of_a_published_checkpoint(monkeypatch, capsys, published):
    checkpoint, data = published
    code, out, _ = run(monkeypatch, capsys, checkpoint, "--data", data, "--loops", "1-4", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [r["n_loops"] for r in rows] == [1, 2, 3, 4]
    assert all(r["val_loss"] > math.log(2) for r in rows)
    assert len({round(r["val_loss"], 6) for r in rows}) == 4
    code, out, err = run(monkeypatch, capsys, checkpoint, "--data", data, "--loops", "2,3")
    assert code == 0
    assert f"{rows[2]['val_loss']:.4f}" in next(
        x for x in out.splitlines() if "training depth" in x
    )
    assert "mean_recurrence 3" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loops", "0-3"], "start at 1"),
        (["--loops", "a"], "not a number"),
        (["--loops", "\u00b2"], "not a number"),
        (["--loops", "1-999999999"], "end at 1000"),
        (["--n-sequences", str(10**30)], "a number of 100 bits"),
        (["--n-sequences", "100000"], "validation rows"),
    ],
)
def test_bad_input_is_one_message(monkeypatch, capsys, published, arguments, words):
    checkpoint, data = published
    code, out, err = run(monkeypatch, capsys, checkpoint, "--data", data, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_of_a_text_without_end_a_stated_number_of_rows_is_read(monkeypatch, capsys, tmp_path):
    data = prepare(resolve("state-reveals"), "characters", 17, tmp_path / "data")
    run_folder = trained_run(tmp_path / "run")
    ask = (run_folder, "--data", data, "--loops", "1", "--batch-sequences", "512", "--json")
    code, out, err = run(monkeypatch, capsys, *ask)
    assert code == 0
    assert [row["n_tokens"] for row in json.loads(out)] == [1_024 * 16]
    assert "1024 rows are read, more with --n-sequences" in err
    code, out, err = run(monkeypatch, capsys, *ask, "--n-sequences", "1025")
    assert [row["n_tokens"] for row in json.loads(out)] == [1_025 * 16]
    assert "rows are read" not in err


def test_a_folder_without_a_model_says_what_was_looked_for(
    monkeypatch, capsys, published, tmp_path
):
    code, _, err = run(monkeypatch, capsys, tmp_path, "--data", published[1])
    assert code == 2
    assert "checkpoint.json" in err


def test_loops_are_parsed_or_refused():
    assert parse_loops("1-3, 6,2") == [1, 2, 3, 6]
    with pytest.raises(UserError, match="must rise"):
        parse_loops("5-3")


def test_one_checkpoint_is_read_as_named_and_a_run_by_its_newest(published, tmp_path):
    from parcae_core.checkpoints.load import load_model
    from parcae_core.result import Execution
    from parcae_core.training.train import train
    from tests.support.training import tiny_trial, write_data

    trial = tiny_trial(n_steps=6)
    data = write_data(tmp_path / "data")
    train(
        trial,
        data_dir=data,
        run_dir=tmp_path / "run",
        execution=Execution(device="cpu", checkpoint_every_steps=3),
    )
    older, _ = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert "step 3 of 6" in load_model(older).origin
    assert "step 6 of 6" in load_model(tmp_path / "run").origin
    (older / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="older, whole one"):
        load_model(older)
