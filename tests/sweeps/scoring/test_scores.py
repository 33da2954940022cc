"""scores.json, and how it becomes columns of the records."""

import json
import math

import pandas as pd
import pytest

from analysis import comparison
from analysis.errors import InputError
from analysis.table import load, records
from parcae_core.errors import UserError
from parcae_core.trial import planned_to_dict
from sweeps.cli.trained import _print_scores
from sweeps.records import records_of
from sweeps.scoring.scores import Score, Scores
from sweeps.storage.files import sealed, write_json
from sweeps.store import Store
from tests.support.tiny import tiny_plan
from tests.sweeps.test_store import good_result


def scores(value=0.5, loops=("1", "3"), step=12, task="copy"):
    row = Score(task=task, metric="acc", value=value, stderr=0.1)
    return Scores(by_loops={t: [row] for t in loops}, step=step, harness="0")


def test_the_file_comes_back_and_newer_scores_replace_those_of_the_same_task(tmp_path):
    scores().write(tmp_path)
    assert Scores.read(tmp_path) == scores()
    both = (
        scores().merged(scores(value=0.75, loops=("3", "6"))).merged(scores(task="my task-2shot"))
    )
    assert both.columns(1) == {"score_copy_acc": 0.5, "score_my_task_2shot_acc": 0.5}
    assert both.columns(3)["score_copy_acc"] == 0.75
    other = "score_my_task_2shot_acc"
    assert both.columns(6) == {"score_copy_acc": 0.75, other: None}
    assert both.columns(2) == {"score_copy_acc": None, other: None}
    later = scores(step=20)
    assert scores().merged(later) == later  # another checkpoint is another model
    assert Scores.read(tmp_path / "elsewhere") is None


def test_a_damaged_file_is_one_sentence_that_says_what_to_do(tmp_path):
    scores().write(tmp_path)
    path = tmp_path / "scores.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(UserError, match=r"checksum .* remove it and score the model again"):
        Scores.read(tmp_path)
    path.write_text(json.dumps({"by_loops": {}}))
    with pytest.raises(UserError, match="step is missing"):
        Scores.read(tmp_path)


def test_each_evaluation_of_a_trial_has_the_scores_at_its_loops(tmp_path):
    store = Store(tmp_path, "tiny")
    trial = tiny_plan().trials[-1]  # of two loops, evaluated at 1, 2 and 3
    files = store.files(trial.trial_id)
    files.folder.mkdir(parents=True)
    write_json(files.trial, sealed(planned_to_dict(trial)))
    write_json(files.result, good_result(trial))
    scores().write(files.folder)
    table = records_of(store)
    assert table.n_loops.tolist() == [1, 2, 3]
    assert table.score_copy_acc.tolist() == pytest.approx([0.5, math.nan, 0.5], nan_ok=True)


def test_records_keep_scores_and_compare_uses_them(tmp_path):
    frame = load.load("bundled:state-reveals").frame.drop(columns="train_flops")
    plain = frame[frame.architecture == "transformer"].head(2).copy()
    looped = frame[frame.architecture == "parcae"].head(1).copy()
    looped["n_params"] = looped["n_params_unrolled"] = plain.n_params.iloc[0]
    looped["mean_recurrence"] = looped["mean_backprop_depth"] = 1
    looped["n_params_once"] = looped.n_params - looped.n_params_core
    for name in ("n_params", "n_params_unrolled", "n_params_once"):
        plain.loc[plain.index[1], name] *= 2
    plain["budget_flops"] = looped.budget_flops.iloc[0]
    looped["score_copy_acc"], plain["score_copy_acc"] = [0.6], [0.5, 0.7]
    paths = [records.save(f, tmp_path / f"{n}.parquet") for n, f in (("l", looped), ("p", plain))]
    assert records.load(paths[0]).score_copy_acc.dtype == "float64"
    found = comparison.compare(*paths, metric="score_copy_acc")
    assert found.quality[0]["relative_quality"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="unknown column 'scores'"):
        records.validate(looped.assign(scores=1.0))
    with pytest.raises(InputError, match="needs a float"):
        records.validate(looped.assign(score_x=pd.Series(["high"], index=looped.index)))


def test_a_metric_that_was_no_number_at_one_number_of_loops_leaves_its_cell_empty(capsys):
    accuracy, perplexity = (
        Score(task="copy", metric=m, value=v, stderr=None) for m, v in (("acc", 0.5), ("ppl", 9.25))
    )
    by_loops = {"1": [accuracy], "4": [accuracy, perplexity]}
    _print_scores("mine", Scores(by_loops=by_loops, step=1, harness="0"))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "copy" in line]
    assert [r[-2] for r in rows] == ["0.5", "9.25"]
    assert [len(r) - r.count("│") for r in rows] == [4, 3]
