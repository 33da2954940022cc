"""The laws of a sweep that still runs: what has ended is read from its folders, never an older table; also at a URL."""

import json
import math

import pytest

from analysis.errors import InputError
from analysis.table import load
from sweeps.records import collect
from sweeps.source import history, register
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec
from tests.sweeps.test_store import good_result, put


@pytest.fixture(params=["folder", "object store"])
def running(tmp_path, monkeypatch, request, object_store):
    """Four trials planned: (store, a function that ends the next of them)."""
    monkeypatch.setattr(load, "_READERS", {})
    register()
    out = object_store if request.param == "object store" else tmp_path / "runs"
    plan, store = tiny_plan(), Store(out, "tiny")
    store.write_plan(plan, write_spec(tmp_path))
    left = list(plan.trials)

    def end():
        trial = left.pop(0)
        result = good_result(trial)
        for row in result["evaluation"]:
            row["val_bpb"] = row["val_loss"] / math.log(2)
        put(store, trial, result)
        store.storage.push(store.files(trial.trial_id).result)

    return store, end


def test_what_has_ended_is_collected_and_counted(running):
    store, end = running
    with pytest.raises(InputError, match="none of its 4 trials has ended yet"):
        load.load(store.where)
    end()
    collect(store)  # a table that is soon too old
    end()
    end()
    table = load.load(store.where)
    assert table.frame.trial_id.nunique() == 3
    assert "3 of 4 trials have ended; the others are not in this table" in table.notes
    assert table.flops_rule == "paper"
    end()
    assert not any("have ended" in note for note in load.load(store.where).notes)


def test_its_learning_curves_are_drawn_while_it_trains(running):
    store, end = running
    assert history(store.where) == ({}, None)
    for trial in store.stored_trials():
        lines = [
            {
                "step": step,
                "n_tokens": step * trial.batch_tokens,
                "train/loss": 5 - step / 100,
                "optim/muon_lr": 0.01,
                f"flops/{trial.budget_rule}": 1e6 * step,
            }
            for step in range(1, 41)
        ]
        path = store.files(trial.trial_id).metrics
        path.write_text("\n".join(map(json.dumps, lines)) + "\n{torn")
        store.storage.push(path)
    end()
    drawing = history(store.where)[0]["curves"]()
    rows = drawing.drawn
    assert set(rows.panel) == {"loss", "lr", "val_loss"}
    assert rows[rows.panel == "lr"].series.nunique() == 4
    assert list(rows[rows.panel == "val_loss"].y) == [3.0]  # of the one that has ended


@pytest.mark.parametrize("running", ["folder"], indirect=True)
def test_a_sweep_is_named_wherever_its_folder_is_wanted(running, monkeypatch):
    store, end = running
    end()
    monkeypatch.chdir(store.out.parent)
    assert load.load("tiny").frame.equals(load.load(store.root).frame)
    with pytest.raises(InputError):
        load.load("tinyy")
