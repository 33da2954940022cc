"""Sweeps in an object store: a real S3 server on this machine that refuses, dawdles and goes away."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from analysis.table import records
from parcae_core.checkpoints.native import newest_checkpoint
from parcae_core.errors import UserError
from parcae_core.training.train import train
from sweeps.branches import Waiting
from sweeps.cli.sweep import load_plan
from sweeps.records import collect, records_of
from sweeps.reports import StateReport
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.trainable import _join, attempt
from sweeps.siblings import reuse_siblings
from sweeps.storage import bucket, objects, uploads
from sweeps.storage.base import LeaseLost
from sweeps.storage.objects import Objects, Retrying, Unreachable, is_url
from sweeps.store import Store, open_sweep
from sweeps.tracking.server import unsynced
from sweeps.tracking.sweep_run import mirror_sweep, sweep_run_id
from sweeps.tracking.trial_run import run_id
from tests.support.s3_server import serving
from tests.support.tiny import write_spec
from tests.sweeps.cli.test_cli import in_process

ROOT = Path(__file__).parents[3]
OUT = "s3://sweeps/runs"


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """(client, server) with an empty bucket "sweeps"; this process is a node of its own."""
    pytest.importorskip("s3fs")
    import fsspec

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(uploads, "ORPHAN_S", 0.1)
    with serving("sweeps") as (client, server, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield client, server
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(spec, plan, records of an undisturbed local run) of two trials."""
    folder = tmp_path_factory.mktemp("planned")
    spec = write_spec(folder, mean_recurrence=[2], budgets_flops=[2e8, 8e8])
    plan = load_plan(spec)
    store = Store(folder / "runs", plan.name)
    _, job = ready(plan, spec, store)
    for trial in plan.trials:
        attempt(job, trial.trial_id, lambda _: None)
    return spec, plan, records_of(store)


def ready(plan, spec, store: Store, **options):
    """A store with its plan, and a job for its workers."""
    store.write_plan(plan, spec)
    data = prepare_data(plan, store, plan.trials)
    return store, make_job(plan, store, data, Options(**options))


def same(table, undisturbed) -> bool:
    columns = ["trial_id", "n_loops", "val_loss", "val_bpb", "status", "n_tokens"]
    return table[columns].equals(undisturbed[columns])


def keys(client) -> list[str]:
    listed = client.list_objects_v2(Bucket="sweeps").get("Contents", [])
    return [o["Key"].removeprefix("runs/tiny/") for o in listed]


def test_records_are_those_of_a_local_run_though_every_fourth_request_fails(s3, planned):
    client, server = s3
    spec, plan, undisturbed = planned
    server.refuse_every = 4
    store = Store(OUT, plan.name)
    store.check(plan, spec, extend=False)
    with store.storage.lock():
        _, job = ready(plan, spec, store, checkpoint_every_s=0.1)
        said = []
        for trial in plan.trials:
            attempt(job, trial.trial_id, said.append)
        assert [s["state"] for s in said] == ["done", "done"]
        attempt(job, plan.trials[0].trial_id, said.append)
        assert said[-1] == {"state": "finished"}
    store.refresh()
    assert {store.state(t).state for t in plan.trials} == {"done"}
    assert collect(store) is not None
    assert server.refused > 10
    server.refuse_every = None
    assert same(records.load(f"{OUT}/tiny"), undisturbed)
    found = keys(client)
    long = plan.trials[1]
    steps = {k.split("/")[2] for k in found if k.startswith(f"{long.trial_id}/checkpoints/")}
    assert sorted(steps)[-1] == f"step-{long.n_steps:09d}"
    assert len(steps) <= 2
    for name in ("metrics.jsonl", "result.json", "state.json", "trial.json"):
        assert f"{long.trial_id}/{name}" in found
    assert not [k for k in found if k.startswith((".driver", ".probe"))]
    # Nothing of a finished trial is left on the node
    assert not list(Path(tempfile.gettempdir()).glob(f"parcae-work-*/tiny/{long.trial_id}/*"))


@pytest.mark.slow
def test_a_slow_store_does_not_hold_up_a_step(s3, planned):
    _, server = s3
    spec, plan, _ = planned
    times = []

    def timed(trial, **given):
        def on_report(line):
            times.append(time.monotonic())
            report(line)

        report = given["on_report"]
        return train(trial, **(given | {"on_report": on_report}))

    store, job = ready(plan, spec, Store(OUT, plan.name), train=timed, checkpoint_every_s=0.1)
    server.write_delay_s = 0.8
    attempt(job, plan.trials[1].trial_id, lambda _: None)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(gaps) > 30
    # The trainer's own write and hash of a checkpoint is all that a step may wait for
    assert max(gaps) < 0.6
    store.refresh()
    assert store.state(plan.trials[1]).state == "done"


WORKER = """
import pickle, sys
from sweeps.runner.trainable import _join, attempt
job, trial_id = pickle.loads(sys.stdin.buffer.read())
attempt(job, trial_id, lambda _: None)
"""


def test_a_killed_workers_trial_goes_on_on_another_node(s3, planned, tmp_path, monkeypatch):
    _, server = s3
    spec, plan, undisturbed = planned
    server.refuse_every = 5
    store, job = ready(plan, spec, Store(OUT, plan.name), checkpoint_every_s=0.1)
    trial = plan.trials[1]
    attempt(job, plan.trials[0].trial_id, lambda _: None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(elsewhere), "PYTHONPATH": str(ROOT)},
    )
    worker.stdin.write(pickle.dumps((job, trial.trial_id)))
    worker.stdin.close()
    there = Retrying(Objects(f"{OUT}/tiny"))
    while not uploads.checkpoints_in(there, trial.trial_id):
        assert worker.poll() is None
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert list(elsewhere.glob("parcae-work-*/_data/*/manifest.json"))  # the data came with it
    assert not list(Path(tempfile.gettempdir()).glob(f"parcae-work-*/tiny/{trial.trial_id}"))
    attempt(job, trial.trial_id, lambda _: None)
    store.refresh()
    assert store.result(trial).n_resumed == 1
    assert same(records_of(store), undisturbed)


@pytest.mark.slow
def test_a_damaged_checkpoint_in_the_store_is_passed_over(s3, planned):
    client, _ = s3
    spec, plan, undisturbed = planned
    store, job = ready(plan, spec, Store(OUT, plan.name), checkpoint_every_s=0.02)
    trial = plan.trials[1]
    attempt(job, plan.trials[0].trial_id, lambda _: None)
    attempt(job, trial.trial_id, lambda _: None)
    names = uploads.checkpoints_in(store.storage.objects, trial.trial_id)
    assert len(names) == 2
    for name in ("result.json", "state.json"):
        client.delete_object(Bucket="sweeps", Key=f"runs/tiny/{trial.trial_id}/{name}")
    newest = f"runs/tiny/{trial.trial_id}/checkpoints/{names[-1]}/weights.safetensors"
    client.put_object(Bucket="sweeps", Key=newest, Body=b"cut short")
    attempt(job, trial.trial_id, lambda _: None)
    store.refresh()
    assert store.result(trial).n_resumed == 1
    assert same(records_of(store), undisturbed)


def test_a_result_that_the_store_would_not_take_is_kept_and_handed_over(s3, planned, monkeypatch):
    _, server = s3
    spec, plan, _ = planned
    monkeypatch.setattr(uploads, "FINAL_PATIENCE_S", 0.5)
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.5)

    def then_down(trial, **given):
        result = train(trial, **given)
        server.down = True
        return result

    store, job = ready(plan, spec, Store(OUT, plan.name), train=then_down)
    trial = plan.trials[0]
    with pytest.raises(Unreachable):
        attempt(job, trial.trial_id, lambda _: None)
    server.down = False
    store.refresh()
    assert store.result(trial) is None
    said = []
    attempt(job, trial.trial_id, said.append)
    assert said == [{"state": "finished"}]  # not trained again
    store.refresh()
    assert store.state(trial).state == "done"


def test_an_orphan_finds_the_lease_gone_and_publishes_nothing_more(s3, planned, monkeypatch):
    client, _ = s3
    spec, plan, _ = planned
    monkeypatch.setattr("sweeps.runner.trainable.ASK_EVERY_S", 0.0)
    monkeypatch.setattr(uploads, "FOLLOW_EVERY_S", 0.05)
    trial = plan.trials[0]
    key = f"runs/tiny/{trial.trial_id}/lease.json"

    def usurped(trial, *, execution, **given):
        body = json.dumps({"owner": "another", "generation": 9}).encode()
        client.put_object(Bucket="sweeps", Key=key, Body=body)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            execution.stop_requested()
            time.sleep(0.01)
        raise AssertionError("the lost lease went unnoticed")

    _, job = ready(plan, spec, Store(OUT, plan.name), train=usurped)
    with pytest.raises(LeaseLost):
        attempt(job, trial.trial_id, lambda _: None)
    assert f"{trial.trial_id}/result.json" not in keys(client)
    held = json.loads(client.get_object(Bucket="sweeps", Key=key)["Body"].read())
    assert held["owner"] == "another"


def test_a_request_to_stop_reaches_the_workers_and_leaves_a_checkpoint(s3, planned, monkeypatch):
    client, _ = s3
    spec, plan, _ = planned
    monkeypatch.setattr("sweeps.runner.trainable.ASK_EVERY_S", 0.0)
    monkeypatch.setattr(uploads, "FOLLOW_EVERY_S", 0.05)
    trial = plan.trials[1]
    store = Store(OUT, plan.name)

    def stopping(trial, **given):
        def on_report(line):
            if line["step"] == 5:
                store.request_stop(job.session).join()

        return train(trial, **(given | {"on_report": on_report}))

    _, job = ready(plan, spec, store, train=stopping)
    said = []
    attempt(job, trial.trial_id, said.append)
    assert said[-1]["state"] == "planned"
    assert uploads.checkpoints_in(store.storage.objects, trial.trial_id)
    store.refresh()
    assert store.state(trial).reason == "stopped on request"
    store.storage.delete(store.stop_file(job.session))
    assert not [k for k in keys(client) if ".stop" in k]


def test_a_stop_reaches_this_nodes_workers_although_the_store_is_away(s3, planned, monkeypatch):
    _, server = s3
    spec, plan, _ = planned
    monkeypatch.setattr("sweeps.runner.trainable.ASK_EVERY_S", 0.0)
    monkeypatch.setattr(uploads, "STOP_PATIENCE_S", 0.3)
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.3)
    monkeypatch.setattr(objects, "PATIENCE_S", 0.3)
    trial = plan.trials[1]
    store = Store(OUT, plan.name)
    sending = []

    def stopping(trial, **given):
        def on_report(line):
            if line["step"] >= 5 and not server.down:
                server.down = True
                sending.append(store.request_stop(job.session))

        return train(trial, **(given | {"on_report": on_report}))

    _, job = ready(plan, spec, store, train=stopping)
    with pytest.raises(Unreachable):
        attempt(job, trial.trial_id, lambda _: None)
    sending[0].join()
    assert list(job.store.folder(trial.trial_id).glob("checkpoints/step-*"))
    store.forget_stop(job.session)
    server.down = False
    _, job = ready(plan, spec, store)
    attempt(job, trial.trial_id, lambda _: None)
    store.refresh()
    assert store.result(trial).n_resumed == 1  # from what was left on the node


def test_a_process_on_another_node_joins_from_the_same_checkpoint(
    s3, planned, tmp_path, monkeypatch
):
    spec, plan, _ = planned
    store, job = ready(plan, spec, Store(OUT, plan.name))
    trial = plan.trials[0]
    attempt(job, trial.trial_id, lambda _: None)
    [newest] = uploads.checkpoints_in(store.storage.objects, trial.trial_id)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = _join(job, trial, newest)
    assert there["run_dir"].startswith(str(tmp_path))
    found = newest_checkpoint(Path(there["run_dir"]) / "checkpoints", trial)
    assert found.path.name == newest
    assert (Path(there["data_dir"]) / "manifest.json").is_file()
    _join(job, trial, None)  # the first process starts afresh
    assert newest_checkpoint(Path(there["run_dir"]) / "checkpoints", trial) is None


def test_one_driver_at_a_time_and_a_dead_ones_lock_is_taken(s3, planned, monkeypatch):
    client, _ = s3
    monkeypatch.setattr(bucket, "DRIVER_RENEWS_S", 0.4)
    monkeypatch.setattr(bucket, "DRIVER_GONE_S", 1.5)
    store = Store(OUT, "tiny")
    busy = pytest.raises(UserError, match=r"another `parcae run` is at work here \(process \d+")
    with store.storage.lock(), busy, Store(OUT, "tiny").storage.lock():
        pass
    client.put_object(Bucket="sweeps", Key="runs/tiny/.driver", Body=b'{"owner": "dead"}')
    with store.storage.lock():
        pass
    assert not keys(client)


def test_the_verbs_read_it_and_retry_writes_there(s3, planned, monkeypatch, capsys):
    client, _ = s3
    spec, plan, _ = planned
    store, job = ready(plan, spec, Store(OUT, plan.name))
    attempt(job, plan.trials[0].trial_id, lambda _: None)

    def broken(trial, **_):
        raise ValueError("bad luck")

    _, failing = ready(plan, spec, store, train=broken)
    attempt(failing, plan.trials[1].trial_id, lambda _: None)
    parcae = lambda *args: in_process(monkeypatch, capsys, *args)  # noqa: E731
    code, out, _ = parcae("status", f"{OUT}/tiny", "--json")
    data = json.loads(out)
    assert (code, data["counts"]) == (0, {"done": 1, "failed": 1})
    [failed] = [t for t in data["trials"] if t["state"] == "failed"]
    assert failed["error"][-1] == "ValueError: bad luck"
    assert parcae("collect", "tiny", "--out", OUT)[:2] == (0, f"{OUT}/tiny/records.parquet\n")
    assert len(records.load(f"{OUT}/tiny/records.parquet")) == 4
    assert parcae("retry", spec, "--out", OUT)[1] == f"{failed['trial_id']}\n"
    again = open_sweep("tiny", OUT)
    assert again.state(plan.trials[1]).state == "planned"
    other = Store(OUT, "other")
    other.write_plan(plan, spec)
    assert reuse_siblings(other, list(plan.trials)) == {plan.trials[0].trial_id: "tiny"}
    other.refresh()
    assert other.state(plan.trials[0]).state == "done"
    mirror = f"{plan.trials[0].trial_id}/wandb/offline-run-1/run-1.wandb"
    client.put_object(Bucket="sweeps", Key=f"runs/tiny/{mirror}", Body=b":W&B")
    again.storage.pull(
        again.root / n for n in again.storage.list() if "/wandb/" in n
    )  # as `parcae sync` does
    assert (again.root / mirror).read_bytes() == b":W&B"
    code, out, err = parcae("status", "s3://sweeps/nothing")
    assert (code, out) == (2, "")
    assert "no sweep at s3://sweeps/nothing" in err
    code, _, err = parcae("run", spec, "--out", "s3://no-such-bucket/runs")
    assert code == 2
    assert "s3://no-such-bucket/runs/tiny: cannot be" in err
    assert len(err.splitlines()) == 1


def test_urls_are_told_from_paths():
    assert is_url("s3://b/x")
    assert is_url(Path("gs://b/x"))
    assert not is_url("runs/demo")
    assert not is_url("C:/x")


def test_the_sweeps_own_wandb_run_reaches_the_store_once(s3, planned):
    client, _ = s3
    spec, plan, _ = planned
    store = Store(OUT, plan.name)
    _, job = ready(plan, spec, store, wandb_mode="offline")
    lost = plan.trials[1].trial_id
    for trial in plan.trials:
        attempt(job, trial.trial_id, lambda _: None)
    # as if its worker had died between the result and the mirror
    for key in keys(client):
        if key.startswith(f"{lost}/wandb/"):
            client.delete_object(Bucket="sweeps", Key=f"runs/tiny/{key}")

    store.refresh()
    assert mirror_sweep(store, project="p", mode="offline") == []
    runs = {k.split("/")[-2] for k in keys(client) if k.endswith(".wandb")}
    assert sorted(r.split("-", 3)[3] for r in runs) == sorted(
        [*(run_id(store, trial) for trial in plan.trials), sweep_run_id(store)]
    )
    seen = Store(OUT, plan.name)  # of another machine, that sends them
    seen.refresh()
    seen.storage.pull(seen.root / n for n in seen.storage.list() if "wandb" in n.split("/"))
    assert {p.name for p in unsynced(seen.root)} == runs

    # nothing is new: nothing is written again, and what changed replaces what nobody has sent
    assert mirror_sweep(seen, project="p", mode="offline") == []
    assert {k.split("/")[-2] for k in keys(client) if k.endswith(".wandb")} == runs
    StateReport(state="failed", reason="made up").write(seen.files(lost).state)
    (seen.folder(lost) / "result.json").unlink()
    assert mirror_sweep(seen, project="p", mode="offline") == []
    after = {k.split("/")[-2] for k in keys(client) if k.endswith(".wandb")}
    assert len(after) == len(runs)
    assert {r.split("-", 3)[3] for r in after} == {r.split("-", 3)[3] for r in runs}
    assert after != runs


def test_a_branch_begins_on_another_node_from_what_its_trunk_pushed(s3, tmp_path, monkeypatch):
    client, server = s3
    server.refuse_every = 5
    sizes = {"mean_recurrence": [2], "budgets_flops": [1e8, 2e8]}
    spec = write_spec(tmp_path, name="trunks", trunks=True, **sizes)
    plan = load_plan(spec)
    store, job = ready(plan, spec, Store(OUT, plan.name))
    trunk, branch = plan.trials
    waiting = Waiting(store, [branch])
    assert waiting.ready() is None
    attempt(job, trunk.trial_id, lambda _: None)
    waiting.asked_anew()
    assert waiting.ready() is branch
    here = Path(tempfile.gettempdir()).glob(f"parcae-work-*/trunks/{branch.trial_id}/checkpoints")
    assert not list(here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "another"))
    (tmp_path / "another").mkdir()
    attempt(job, branch.trial_id, lambda _: None)
    store.refresh()
    result = store.result(branch)
    assert (result.status, result.shared_steps) == ("done", branch.shared_steps)
    listed = client.list_objects_v2(Bucket="sweeps")["Contents"]
    assert not [o["Key"] for o in listed if "/branches/" in o["Key"]]
