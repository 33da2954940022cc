"""The mirror: one W&B run per trial, read back from its offline folder without a server."""

import json
import os
import subprocess
import sys
import time

import pytest

from sweeps.store import Store
from sweeps.wandb_log import read_metrics
from tests.sweeps.test_store import good_result
from tests.sweeps.tiny import tiny_plan, write_spec
from tests.sweeps.wandb_reader import read

# W&B starts a process of its own and leaves handlers behind: each mirror runs in a fresh process
MIRROR = """
import json, sys
from pathlib import Path
from sweeps.store import Store
from sweeps.wandb_log import mirror
store = Store(Path(sys.argv[1]), "tiny")
trial = store.trial(sys.argv[2])
problem = mirror(store.folder(sys.argv[2]), trial, sweep="tiny", mode=sys.argv[3], project="p", tags=("a", "b"))
print(json.dumps(problem))
"""


@pytest.fixture
def finished(tmp_path):
    """(store, trial) with metrics of two attempts, the second torn, and a result."""
    plan = tiny_plan()
    store = Store(tmp_path, plan.name)
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    trial = plan.trials[1]
    folder = store.folder(trial.trial_id)
    lines = [{"step": s, "train/loss": 5.0 - s / 10, "depth/mean": 2.0} for s in range(1, 21)]
    repeated = [{"step": 20, "train/loss": 2.5, "depth/mean": 2.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines + repeated)
    (folder / "metrics.jsonl").write_text(text + '{"step": 21, "train/lo')
    (folder / "result.json").write_text(json.dumps(good_result(trial)))
    return store, trial


def mirror(store, trial, mode, **environment) -> tuple[object, float]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MIRROR, str(store.out), trial.trial_id, mode],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - began


def test_metrics_hold_each_step_once_and_leave_out_a_torn_line(finished):
    store, trial = finished
    rows = read_metrics(store.folder(trial.trial_id) / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 21))
    assert rows[-1]["train/loss"] == 2.5


def test_an_offline_run_reads_back_as_the_trial(finished):
    store, trial = finished
    problem, _ = mirror(store, trial, "offline")
    assert problem is None
    [path] = store.folder(trial.trial_id).glob("wandb/offline-run-*/*.wandb")
    run = read(path)
    assert run["run"] == {"id": trial.trial_id, "group": "tiny", "tags": ["a", "b"]}
    assert run["config"]["mean_recurrence"] == trial.mean_recurrence
    assert run["config"]["model"]["d_model"] == trial.model.d_model
    steps = [(h["_step"], h["train/loss"]) for h in run["history"] if "train/loss" in h]
    metrics = read_metrics(store.folder(trial.trial_id) / "metrics.jsonl")
    assert steps == [(m["step"], m["train/loss"]) for m in metrics]
    result = store.result(trial)
    for row in result["evaluation"]:
        assert run["summary"][f"val/loss_at_{row['n_loops']}_loops"] == row["val_loss"]
    assert run["summary"]["status"] == "done"
    assert run["exit"] == 0


def test_an_unreachable_server_costs_little_and_leaves_an_offline_run(finished, tmp_path):
    store, trial = finished
    key = "0" * 40
    problem, seconds = mirror(
        store,
        trial,
        "online",
        WANDB_BASE_URL="http://127.0.0.1:9",  # the discard port: refused
        WANDB_API_KEY=key,
        HOME=str(tmp_path),
    )
    assert problem.startswith("W&B online: ")
    assert seconds < 60  # after training, in the worker; a plain init blocks for 100 s
    [path] = store.folder(trial.trial_id).glob("wandb/offline-run-*/*.wandb")
    assert read(path)["exit"] == 0
    for file in store.root.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes()
