"""The mirror: one W&B run per trial and per sweep, read back from its files without a server."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from analysis.errors import InputError
from analysis.table import load
from parcae_core.training.metrics import read_metrics
from sweeps.cli import app
from sweeps.records import records_of
from sweeps.storage.files import read_json, write_json
from sweeps.store import Store
from sweeps.tracking import reader
from sweeps.tracking.server import unsynced
from sweeps.tracking.sweep_run import mirror_sweep, sweep_run_id
from sweeps.tracking.trial_run import run_id
from tests.support import wandb_files
from tests.support.tiny import SPEC, tiny_plan, write_spec
from tests.sweeps.test_store import good_result, report

# W&B starts a process of its own and leaves handlers behind: each mirror runs in a fresh process
MIRROR = """
import json, sys
from pathlib import Path
from sweeps.store import Store
from sweeps.tracking.trial_run import mirror
store = Store(Path(sys.argv[1]), "tiny")
print(json.dumps([mirror(store, store.trial(i), project="p") for i in sys.argv[2:]]))
"""


def mirror(store, *trial_ids, **environment) -> list:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", MIRROR, str(store.out), *trial_ids],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout.splitlines()[-1])


def end_trial(store, trial, *, n_steps: int = 20) -> None:
    """Metrics of two attempts, the second torn, and a result."""
    folder = store.folder(trial.trial_id)
    lines = [{"step": s, "train/loss": 5.0 - s / 10} for s in range(1, n_steps + 1)]
    lines[9]["val/loss"] = 4.5
    repeated = [{"step": n_steps, "train/loss": 2.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines + repeated)
    (folder / "metrics.jsonl").write_text(text + '{"step": 21, "train/lo')
    result = good_result(trial) | {"val_history": [[10, 4.5]]}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A store whose trials have ended: done, diverged, failed, and taken over; then mirrored."""
    folder = tmp_path_factory.mktemp("ended")
    plan = tiny_plan(evaluation=SPEC["evaluation"] | {"every": "50%"})
    store = Store(folder, plan.name)
    store.write_plan(plan, write_spec(folder / "spec"))
    done, diverged, failed, reused = plan.trials
    for trial in (done, diverged, reused):
        end_trial(store, trial)
    lost = good_result(diverged) | {"status": "diverged", "reason": "step 3: loss is nan"}
    write_json(
        store.folder(diverged.trial_id) / "result.json", lost | {"step": 3, "evaluation": []}
    )
    report(store, done, state="done", attempts=2, git_commit="c" * 40)
    report(store, failed, state="failed", step=4, reason="ValueError: bad luck")
    report(store, reused, state="done", reused_from="other")
    assert mirror(store, *plan.trial_ids) == [None] * 4
    return store, plan.trials


def run_of(store, trial) -> wandb_files.RunFile:
    return wandb_files.read(wandb_files.only_file(store.folder(trial.trial_id)))


def test_metrics_hold_each_step_once_and_leave_out_a_torn_line(ended):
    store, trials = ended
    rows = read_metrics(store.folder(trials[0].trial_id) / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 21))
    assert rows[-1]["train/loss"] == 2.5


def test_an_offline_run_reads_back_as_the_trial(ended):
    store, (trial, _, failed, reused) = ended
    run = run_of(store, trial)
    assert (run.run_id, run.group, run.job_type) == (run_id(store, trial), "tiny", "trial")
    assert run.tags[0] == "isoflop"
    assert run.tags[1].startswith("spec-")
    assert run.tags[2].startswith("commit-")
    assert run.config["mean_recurrence"] == trial.mean_recurrence
    assert run.config["model"]["d_model"] == trial.model.d_model
    steps = [(h["_step"], h["train/loss"]) for h in run.history if "train/loss" in h]
    metrics = read_metrics(store.folder(trial.trial_id) / "metrics.jsonl")
    assert steps == [(m["step"], m["train/loss"]) for m in metrics]
    assert [h["_step"] for h in run.history if h.get("val/loss") == 4.5] == [10]
    for row in store.result(trial).evaluation:
        assert run.summary[f"val/loss_at_{row.n_loops}_loops"] == row.val_loss
    assert run.summary["val/loops"]["_type"] == "table-file"
    assert run.summary["status"] == "done"
    assert run.exit_code == 0
    assert run_of(store, failed).exit_code == 1
    last = run.history[-1]  # the table comes with the last step, and is no step of its own
    assert (last["_step"], "val/loops" in last) == (store.result(trial).step, True)
    assert run_of(store, reused).run_id == run_id(store, reused)


def test_a_folder_has_runs_of_its_own_and_one_from_before_keeps_those_that_it_has(tmp_path):
    plan, spec = tiny_plan(), write_spec(tmp_path)
    mine, theirs = Store(tmp_path / "mine", "tiny"), Store(tmp_path / "theirs", "tiny")
    for store in (mine, theirs):
        store.write_plan(plan, spec)
    [trial, *_] = plan.trials
    ids = [run_id(mine, trial), run_id(theirs, trial), sweep_run_id(mine), sweep_run_id(theirs)]
    assert len({*ids}) == 4
    mine.write_plan(plan, spec)  # the next `parcae run`
    assert [run_id(mine, trial), sweep_run_id(mine)] == [ids[0], ids[2]]
    before = read_json(mine.root / "sweep.json")
    del before["folder_id"]
    write_json(mine.root / "sweep.json", before)
    mine.write_plan(plan, spec)
    assert run_id(mine, trial) == trial.trial_id
    assert sweep_run_id(mine) == f"tiny-{plan.spec.sha256[:12]}"
    report(mine, trial, state="done", reused_from="other")
    assert run_id(mine, trial) == f"{trial.trial_id}-tiny"


def test_run_folders_give_the_records_of_the_store(ended):
    store, _ = ended
    found = reader.read_files(f"wandb-files:{store.root}")
    pd.testing.assert_frame_equal(
        load.records.validate(found.frame, "there"), records_of(store), check_exact=True
    )
    assert found.dropped == ()
    assert set(found.frame.val_history.dropna()) == {"[[10, 4.5]]", "[]"}


def test_an_outcome_is_written_once_and_a_new_one_replaces_it(ended, tmp_path):
    store, trials = ended
    trial = trials[2]
    folder = store.folder(trial.trial_id)
    [before] = folder.glob("wandb/offline-run-*")
    assert mirror(store, trial.trial_id) == [None]
    assert list(folder.glob("wandb/offline-run-*")) == [before]
    # A worker killed while it wrote leaves a torn file and no marker
    [file] = before.glob("*.wandb")
    os.truncate(file, file.stat().st_size // 2)
    (folder / "wandb" / "mirror.json").unlink()
    assert wandb_files.read(file).exit_code is None
    assert mirror(store, trial.trial_id) == [None]
    run = run_of(store, trial)
    assert (run.exit_code, run.summary["record"]["status"]) == (1, "failed")
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1


def test_several_files_of_one_run_are_one_run(ended):
    store, trials = ended
    first = reader.read_file(wandb_files.only_file(store.folder(trials[0].trial_id)))
    later = replace(first, started=first.started + 60, summary={"a": 1})
    torn = replace(first, state="running")
    [run] = reader.joined([later, torn, reader.Run()])
    assert run.state == "ended"
    assert run.summary == first.summary | {"a": 1}


def test_our_reader_agrees_with_wandbs_own(ended):
    store, trials = ended
    path = wandb_files.only_file(store.folder(trials[0].trial_id))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = [json.loads(line) for line in said.splitlines() if '"type":"history"' in line]
    assert len(theirs) == len(wandb_files.read(path).history)


def test_the_sweeps_run_holds_laws_problems_counts_and_records(ended, tmp_path, monkeypatch):
    store, trials = ended
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert mirror_sweep(store, project="p", mode="disabled") == []
    assert not (store.root / "wandb").exists()
    assert mirror_sweep(store, project="p", mode="offline") == []
    [path] = store.root.glob("wandb/offline-run-*/*.wandb")
    run = wandb_files.read(path)
    assert (run.run_id, run.group, run.job_type) == (sweep_run_id(store), "tiny", "sweep")
    assert run.config["trials"] == [t.trial_id for t in trials]
    assert {k: v for k, v in run.summary.items() if k.startswith("trials/")} == {
        "trials/done": 2, "trials/diverged": 1, "trials/failed": 1, "trials/total": 4,
    }  # fmt: skip
    table = json.loads((path.parent / "files" / run.summary["records"]["path"]).read_text())
    assert len(table["data"]) == len(records_of(store))
    problems = json.loads((path.parent / "files" / run.summary["problems"]["path"]).read_text())
    assert problems["data"]  # three runs bear no law; the run says so
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(("tmp", "parcae-"))]
    # The same content again is not written again
    assert mirror_sweep(store, project="p", mode="offline") == []
    assert list(store.root.glob("wandb/offline-run-*/*.wandb")) == [path]
    assert len(unsynced(store.root)) == 5


def test_a_sweeps_run_that_cannot_be_written_is_a_sentence(ended, tmp_path):
    store, _ = ended
    (tmp_path / "tiny").mkdir()
    [said] = mirror_sweep(Store(tmp_path, "tiny"), project="p", mode="offline")
    assert said.startswith("W&B")
    assert read_json(store.root / "sweep.json")  # untouched
    [said] = mirror_sweep(store, project="p", mode="offline", deadline_s=0.01)
    assert said == "W&B: the sweep's run was not written within 0.01 s"


def test_a_source_of_run_folders_is_recognised_and_refused_in_words(ended, tmp_path, monkeypatch):
    store, trials = ended
    monkeypatch.setattr(load, "_READERS", {})
    reader.register()
    mirrored = store.folder(trials[0].trial_id) / "wandb"
    table = load.load(mirrored)
    assert set(table.frame.trial_id) == {trials[0].trial_id}
    with pytest.raises(InputError, match=r"holds no records\.parquet"):
        load.load(store.root)  # a sweep folder without records is not silently its mirror
    with pytest.raises(InputError, match=r"no \.wandb file in that folder"):
        load.load(f"wandb-files:{tmp_path}")
    (tmp_path / "a.wandb").write_bytes(b"not W&B")
    with pytest.raises(InputError, match="does not start like a W&B run file"):
        load.load(tmp_path)


def test_runs_that_hold_no_records_are_counted_with_their_reasons(ended):
    store, trials = ended
    ours = [reader.read_file(wandb_files.only_file(store.folder(t.trial_id))) for t in trials]
    plan = replace(
        ours[0], job_type="sweep", config={"trials": [t.trial_id for t in trials] + ["?"]}
    )
    foreign = replace(ours[0], run_id="z", config={"lr": 1})
    unfinished = replace(ours[0], run_id="u", summary={}, state="running")
    taken = replace(ours[0], run_id="t")
    found = reader.found([*ours, plan, foreign, unfinished, taken], "wandb:e/p")
    assert {(d.reason, d.n_rows) for d in found.dropped} == {
        ("a W&B run that this toolkit did not write", 1),
        ("a W&B run without a result: its trial has not ended (running)", 1),
        ("a W&B run of a trial that another run has too", 1),
    }
    assert found.notes == ("1 trials that the sweep planned are not among the runs",)
    with pytest.raises(InputError, match=r"no run there holds records .1 runs: a W&B run that"):
        reader.found([replace(foreign, summary={})], "wandb:e/p")
    theirs = reader.found([foreign], "wandb:e/p")  # with a summary: a project of other people's
    assert theirs.own
    assert theirs.frame.lr.tolist() == [1]


@pytest.mark.parametrize("source", ["wandb:e/p", "wandb-files:{root}"])
def test_without_the_extra_a_source_names_it(source, ended, monkeypatch, capsys):
    store, _ = ended
    for name in ("wandb", "wandb.proto"):  # as in the base install; earlier tests loaded it
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(
        sys, "argv", ["parcae", "fit", source.format(root=store.root), "--law", "training"]
    )
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "parcae: this needs wandb, which is not installed: pip install 'parcae-scaling[sweep]'\n"
    )
