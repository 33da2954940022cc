"""scores.json, and how it becomes columns of the records."""

import json

import pandas as pd
import pytest

from analysis import comparison
from analysis.errors import InputError
from analysis.table import load, records
from parcae_core.errors import UserError
from sweeps.records import evaluated
from sweeps.scoring.scores import Score, Scores
from sweeps.store import Store
from tests.support.training import tiny_trial


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
    assert both.columns(6) == {"score_copy_acc": 0.75}
    assert both.columns(2) == {}
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


def test_an_evaluated_number_of_loops_has_its_scores(tmp_path):
    store, trial = Store(tmp_path, "sweep"), tiny_trial()
    store.folder(trial.trial_id).mkdir(parents=True)
    scores().write(store.folder(trial.trial_id))
    assert "score_copy_acc" not in evaluated(store, trial)[0]  # nothing was evaluated


def test_records_keep_scores_and_compare_uses_them(tmp_path):
    frame = load.load("bundled:state-reveals").frame.drop(columns="train_flops")
    plain = frame[frame.architecture == "transformer"].head(2).copy()
    looped = frame[frame.architecture == "parcae"].head(1).copy()
    looped["n_params"] = looped["n_params_unrolled"] = plain.n_params.iloc[0]
    looped["mean_recurrence"] = looped["mean_backprop_depth"] = 1
    looped["n_params_once"] = looped.n_params - looped.n_params_core
    for name in ("n_params", "n_params_unrolled", "n_params_once"):
        plain.loc[plain.index[1], name] *= 2
    looped["score_copy_acc"], plain["score_copy_acc"] = [0.6], [0.5, 0.7]
    paths = [records.save(f, tmp_path / f"{n}.parquet") for n, f in (("l", looped), ("p", plain))]
    assert records.load(paths[0]).score_copy_acc.dtype == "float64"
    found = comparison.compare(*paths, metric="score_copy_acc")
    assert found.quality[0]["relative_quality"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="unknown column 'scores'"):
        records.validate(looped.assign(scores=1.0))
    with pytest.raises(InputError, match="needs a float"):
        records.validate(looped.assign(score_x=pd.Series(["high"], index=looped.index)))
