"""What is damaged in a sweep's folder is named, and the exit code says so."""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis.table import records
from parcae_core.data.io import remove_leftovers, temporary_beside
from parcae_core.errors import UserError
from sweeps.cli import app
from sweeps.records import records_of
from sweeps.reports import StateReport
from sweeps.storage.files import problem_of, read_json, sealed, write_json
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec
from tests.sweeps.test_store import good_result

DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.fixture
def done(tmp_path):
    """A store whose four trials are done: (store, plan, spec)."""
    spec, plan = write_spec(tmp_path), tiny_plan()
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    for trial in plan.trials:
        write_json(store.files(trial.trial_id).result, sealed(good_result(trial)))
    return store, plan, spec


def parcae(capsys, monkeypatch, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["parcae", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        app.main()
    out, err = capsys.readouterr()
    return end.value.code, out, err


def flip_a_digit(path: Path, before: bytes, after: bytes) -> None:
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))


@pytest.mark.parametrize("damage", [b"{", b"[]", b"5", b"\xff\xfe", DEEP, None])
def test_a_damaged_trial_is_named_and_the_others_are_collected(done, damage, capsys, monkeypatch):
    store, plan, spec = done
    trial_id = plan.trials[1].trial_id
    path = store.files(trial_id).trial
    path.unlink() if damage is None else path.write_bytes(damage)
    code, out, err = parcae(capsys, monkeypatch, "status", store.root)
    assert code == 1
    assert f"{trial_id}: damaged: {path}" in out.replace("\n", "")
    assert "3 done, 1 damaged" in out
    assert "1 trials are damaged" in err
    code, out, err = parcae(capsys, monkeypatch, "collect", store.root)
    assert code == 1
    assert f"{trial_id}: left out: {path}" in err
    assert len(pd.read_parquet(out.strip()).trial_id.unique()) == 3
    store.write_plan(plan, spec)  # as `parcae run` does
    assert store.problems() == {}
    assert len(records_of(store).trial_id.unique()) == 4


def test_one_flipped_digit_of_a_result_or_a_cost_is_not_believed(done, capsys, monkeypatch):
    store, plan, _ = done
    first, second = (store.files(t.trial_id) for t in plan.trials[:2])
    flip_a_digit(first.result, b'"final_train_loss": 2.5', b'"final_train_loss": 2.6')
    flip_a_digit(second.trial, b'"budget_flops": 400000000.0', b'"budget_flops": 500000000.0')
    assert store.state(plan.trials[0]).state == "planned"
    assert "its checksum is not that of what was written" in store.state(plan.trials[0]).reason
    code, out, err = parcae(capsys, monkeypatch, "collect", store.root)
    assert code == 1
    assert f"{plan.trials[0].trial_id}: left out: result.json is not accepted" in err
    assert f"{plan.trials[1].trial_id}: left out: {second.trial}: its checksum" in err
    assert len(pd.read_parquet(out.strip()).trial_id.unique()) == 2


def test_files_of_older_versions_without_a_checksum_still_count(done):
    store, plan, _ = done
    for trial in plan.trials:
        for path in (store.files(trial.trial_id).result, store.files(trial.trial_id).trial):
            data = read_json(path)
            del data["sha256"]
            write_json(path, data)
    assert store.problems() == {}
    assert len(records_of(store).trial_id.unique()) == 4


@pytest.mark.parametrize("name", ["state", "result"])
@pytest.mark.parametrize("damage", [b"[1]", b'"x"', b'{"state": 7}', DEEP, b"9" * 5_000, "folder"])
def test_wrong_json_in_place_of_a_report_is_a_sentence(done, name, damage, capsys, monkeypatch):
    store, plan, _ = done
    trial = plan.trials[0]
    path = getattr(store.files(trial.trial_id), name)
    store.files(trial.trial_id).result.unlink()
    path.mkdir() if damage == "folder" else path.write_bytes(damage)
    code, out, _ = parcae(capsys, monkeypatch, "status", store.root)
    assert code == (name == "result")
    if damage != b'{"state": 7}':
        assert f"{name}.json" in out.replace("\n", "")
    assert store.state(trial).state == "planned"


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b'{"trials": 5}', b'{"trials": ["../../x"]}', b'{"trials": [7]}', DEEP]
)
def test_a_damaged_sweep_file_is_named(done, damage, capsys, monkeypatch):
    store, _, _ = done
    (store.root / "sweep.json").write_bytes(damage)
    for verb in ("status", "collect", "retry"):
        code, _, err = parcae(capsys, monkeypatch, verb, store.root)
        assert code == 2
        assert err.startswith(f"parcae: {store.root / 'sweep.json'}: ")
        assert "Remove it and start `parcae run` again" in err


LINE = {"trial_id": "0f3a52c1b77e", "estimate": None, "reason": "replica"}
KNOWN = {"target": "mu@1e9", "value": 2.0, "low": 1.0, "high": 3.0, "n_runs": 9, "flops": 1e9}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"[]", "holds a list"),
        (DEEP, "nested too deep"),
        (b"{}", "estimate is missing"),
        (json.dumps(LINE | {"trial_id": 7}).encode(), "trial_id is 7"),
        (json.dumps(LINE | {"budget_flops": "much"}).encode(), "budget_flops is 'much'"),
        (json.dumps(LINE | {"stop": "x"}).encode(), "either a trial_id or a stop"),
        (json.dumps(LINE | {"estimate": KNOWN | {"value": None}}).encode(), "value is None"),
        (json.dumps(LINE | {"estimate": KNOWN | {"low": -1.0}}).encode(), "interval from -1.0"),
    ],
)
def test_a_damaged_decision_is_named(done, line, words, capsys, monkeypatch):
    store, _, _ = done
    path = store.root / "design.jsonl"
    path.write_bytes(line + b"\n")
    code, out, err = parcae(capsys, monkeypatch, "status", store.root)
    assert (code, out) == (2, "")
    assert err.startswith(f"parcae: {path}: line 1")
    assert words in err
    path.unlink()
    path.mkdir()
    code, _, err = parcae(capsys, monkeypatch, "status", store.root)
    assert (code, err) == (2, f"parcae: {path}: cannot be read (Is a directory)\n")


def test_a_report_of_wrong_types_is_damage(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"state": "running", "step": "many", "time": []})
    assert StateReport.read(path) is None
    assert problem_of(path) == ""  # JSON it is


def test_lost_workers_without_a_reason_are_shown(done, capsys, monkeypatch):
    store, plan, _ = done
    left = StateReport(state="failed", reason="it ended", lost_workers=2)
    left.write(store.files(plan.trials[0].trial_id).state)
    (store.folder(plan.trials[0].trial_id) / "result.json").unlink()
    code, out, _ = parcae(capsys, monkeypatch, "status", store.root)
    assert code == 0
    assert "2 workers lost, the last: why is not known" in " ".join(out.split())


def save_often(frame: pd.DataFrame, path: Path, failed) -> None:
    for _ in range(20):
        try:
            records.save(frame, path)
            records.read(path) if hasattr(records, "read") else pd.read_parquet(path)
        except Exception as error:  # noqa: BLE001 - told to the parent
            failed.put(repr(error))


def test_two_collect_at_once_and_both_write_whole_tables(done):
    store, _, _ = done
    frame, path = records_of(store), store.root / records.FILE_NAME
    context = multiprocessing.get_context("fork")
    failed = context.Queue()
    workers = [context.Process(target=save_often, args=(frame, path, failed)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed.empty(), failed.get()
    assert len(pd.read_parquet(path)) == len(frame)
    assert not list(store.root.glob(".*.tmp"))


def test_a_full_disk_outside_a_trial_is_a_sentence(done):
    store, _, _ = done

    def no_room() -> None:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (0, 0)
        )  # every write is refused, as on a full disk

    command = [sys.executable, "-m", "sweeps.cli", "collect", str(store.root)]
    ended = subprocess.run(command, preexec_fn=no_room, capture_output=True, check=False)
    assert ended.returncode in (1, 2)
    assert b"records.parquet: cannot be written" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert not list(store.root.glob(".*.tmp"))


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["collect"]])
def test_stdout_on_a_full_disk_is_a_sentence(done, arguments):
    store, _, _ = done
    verb, *options = arguments
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "sweeps.cli", verb, str(store.root), *options]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("parcae: No space left on device; the command did not finish")
    assert len(ended.stderr.splitlines()) == 1


def test_what_killed_processes_leave_goes_with_the_next_start(done):
    store, plan, spec = done
    path = store.files(plan.trials[0].trial_id).state
    names = {temporary_beside(path).name for _ in range(100)}
    assert len(names) == 100
    assert all(os.uname().nodename in name for name in names)
    old, new = temporary_beside(path), temporary_beside(path)
    foreign = path.with_name(".mine.tmp")
    for file in (old, new, foreign):
        file.write_text("x")
    os.utime(old, (time.time() - 3_600,) * 2)
    os.utime(foreign, (time.time() - 3_600,) * 2)
    store.write_plan(plan, spec)
    assert not old.exists()
    assert new.exists()  # it may be of a worker that lives
    assert foreign.exists()
    remove_leftovers(path.parent, older_than_s=-1.0)
    assert not new.exists()


def test_a_name_in_sweep_json_that_leads_out_is_refused(done):
    store, _, _ = done
    write_json(store.root / "sweep.json", {"trials": ["../escaped"]})
    with pytest.raises(UserError, match=r"sweep\.json: '\.\./escaped' is not the name"):
        store.stored_trials()


def test_json_of_a_result_survives_being_sealed(done):
    _store, plan, _ = done
    result = good_result(plan.trials[0])
    assert json.loads(json.dumps(sealed(result)))["sha256"] == sealed(sealed(result))["sha256"]


def test_what_a_report_says_cannot_steer_the_terminal(done, capsys, monkeypatch):
    store, plan, _ = done
    steering = "\x1b]0;title\x07\x1b[2J\x9b1A"
    StateReport(state="failed", reason=steering).write(store.files(plan.trials[0].trial_id).state)
    store.files(plan.trials[0].trial_id).result.unlink()
    code, out, _ = parcae(capsys, monkeypatch, "status", store.root)
    assert code == 0
    assert "]0;title" in out
    assert not set(out) & {"\x1b", "\x07", "\x9b"}
