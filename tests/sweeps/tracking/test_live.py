"""W&B online: a server that answers, one that does not, one that refuses; all on loopback sockets.

The client is the real one; see wandb_server for what the answering stand-in is and is not.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis.table import records
from sweeps.records import records_of
from sweeps.storage.files import read_json
from sweeps.store import Store
from sweeps.tracking import reader
from sweeps.tracking.live import Tail
from sweeps.tracking.server import unsynced
from sweeps.tracking.sweep_run import DEADLINE_S
from sweeps.tracking.trial_run import run_id
from tests.support import wandb_files
from tests.support.tiny import tiny_plan, write_spec
from tests.support.wandb_server import KEY, answering, refusing, silent
from tests.sweeps.tracking.test_trial_run import end_trial

# A worker's attempt at a trial whose training takes 4 s of steps and says how long each took
ATTEMPT = """
import json, sys, time
from collections import defaultdict
from pathlib import Path
from sweeps.tracking import live
from sweeps.store import Store
from sweeps.runner.trainable import Job, Options, attempt
from tests.sweeps.test_store import good_result

out, trial_id, mode, n_steps, dies_at = sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:])
slowest, trained = 0.0, 0.0

def train(trial, *, run_dir, **_):
    global slowest, trained
    began = time.monotonic()
    path = run_dir / "metrics.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a", buffering=1) as file:
        for step in range(done + 1, n_steps + 1):
            at = time.monotonic()
            time.sleep(0.05)
            file.write(json.dumps({"step": step, "train/loss": 5 - step / 100}) + "\\n")
            slowest = max(slowest, time.monotonic() - at)
            if step == dies_at:
                import os, signal
                os.kill(os.getpid(), signal.SIGKILL)
    trained = time.monotonic() - began
    return Result(trial)

class Result:
    status, reason = "done", None
    def __init__(self, trial):
        self.trial, self.step = trial, trial.n_steps
    def to_dict(self):
        return good_result(self.trial)

job = Job(out=out, sweep="tiny", session="s", data_dirs=defaultdict(lambda: "-"), spec_sha256="a" * 64,
          git_commit=None, wandb_mode=mode, wandb_project="p", options=Options(train=train))
waited = 0.0

def timed(method):
    def call(self, *args):
        global waited
        began = time.monotonic()
        try:
            return method(self, *args)
        finally:
            waited += time.monotonic() - began
    return call

for name in ("__init__", "end"):
    setattr(live.Live, name, timed(getattr(live.Live, name)))
began = time.monotonic()
for i in trial_id.split(","):
    attempt(job, i, lambda _: None)
total = time.monotonic() - began
print(json.dumps({"total": total, "waited": waited, "trained": trained, "slowest": slowest}))
"""
SWEEP = """
import json, sys, time
from pathlib import Path
from sweeps.store import Store
from sweeps.tracking.sweep_run import mirror_sweep
began = time.monotonic()
problems = mirror_sweep(Store(Path(sys.argv[1]), "tiny"), project="p", mode="online")
print(json.dumps([problems, time.monotonic() - began]))
"""
ROOT = Path(__file__).parents[3]


def environment(url: str, home: Path, key: str | None = KEY) -> dict[str, str]:
    """No settings but ours: the user's keys and servers are not a test's business."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    clean |= {"WANDB_BASE_URL": url, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    clean["WANDB_ERROR_REPORTING"] = "false"
    return clean if key is None else clean | {"WANDB_API_KEY": key}


def start(code: str, *args: object, env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(  # read by `finished`
        [sys.executable, "-c", code, *map(str, args)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen, timeout_s: float = 120):
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def parcae(*args: object, env: dict[str, str], cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *map(str, args)],
        env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def sweep(tmp_path):
    """(store, trials) of a planned sweep."""
    plan = tiny_plan()
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    return store, plan.trials


def require_no_key(folder: Path) -> None:
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert files
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("server", [silent, pytest.param(refusing, marks=pytest.mark.slow)])
def test_a_server_that_cannot_be_reached_delays_training_by_less_than_five_seconds(
    server, sweep, tmp_path
):
    store, trials = sweep
    ids = [t.trial_id for t in trials]
    with server() as url:
        env = environment(url, tmp_path)
        offline = finished(start(ATTEMPT, store.out, ",".join(ids[:2]), "offline", 20, 0, env=env))
        said = finished(start(ATTEMPT, store.out, ",".join(ids[2:]), "online", 20, 0, env=env))
        print(f"{server.__name__}: offline {offline}, online {said}")
        assert offline["waited"] == 0
        # In all, over both trials; what else differs is this machine's load while runs are written
        assert said["waited"] < 5.0
        # A step sleeps 0.05 s; what is above is this machine's other work, not a wait for W&B
        assert said["slowest"] < 1.0
        problems, seconds = finished(start(SWEEP, store.out, env=env))
        print(f"{server.__name__}: the sweep's run took {seconds:.2f} s: {problems}")
    assert seconds < DEADLINE_S + 5
    assert any(p.startswith("W&B online: ") for p in problems)
    for trial in trials[2:]:
        said = read_json(store.folder(trial.trial_id) / "state.json")
        assert said["state"] == "done"
        assert said["wandb_problem"]
    found = reader.read_files(f"wandb-files:{store.root}")
    pd.testing.assert_frame_equal(
        records.validate(found.frame), records_of(store), check_exact=True
    )
    assert len(unsynced(store.root)) == 5  # four trials and the sweep, for `parcae sync`
    require_no_key(tmp_path)


@pytest.mark.slow
def test_a_sweep_ends_although_the_server_never_answers(tmp_path):
    spec = write_spec(tmp_path, budgets_flops=[4e8])
    took = {}
    for mode in ("offline", "online"):
        with silent() as url:
            env = environment(url, tmp_path / "home")
            began = time.monotonic()
            code, _, err = parcae(
                *("run", spec, "--cpus", 1, "--wandb", mode, "--out", tmp_path / mode),
                env=env, cwd=ROOT,
            )  # fmt: skip
            took[mode] = time.monotonic() - began
            assert code == 0, err
    print(f"the whole sweep: {took}; {err.splitlines()[-2:]}")
    assert took["online"] - took["offline"] < DEADLINE_S
    assert len(unsynced(tmp_path / "online" / "tiny")) == 3  # two trials and the sweep
    require_no_key(tmp_path)


@pytest.mark.slow  # W&B sends a run's history every 15 s
def test_a_trial_is_shown_while_it_trains_and_a_resumed_one_goes_on(sweep, tmp_path):
    store, trials = sweep
    trial = trials[1]
    with answering() as server:
        env = environment(server.url, tmp_path)
        first = start(ATTEMPT, store.out, trial.trial_id, "online", 100_000, 0, env=env)
        deadline = time.monotonic() + 90
        while not server.history(run_id(store, trial)):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline, "nothing was shown while it trained"
            time.sleep(0.05)
        assert server.runs[run_id(store, trial)]["state"] == "running"
        first.kill()
        first.communicate(timeout=60)
        metrics = store.folder(trial.trial_id) / "metrics.jsonl"
        n_steps = len(metrics.read_text().splitlines()) + 250
        said = finished(start(ATTEMPT, store.out, trial.trial_id, "online", n_steps, 0, env=env))
        print(f"ended {said['total'] - said['trained']:.2f} s after its training")
        assert list(server.runs) == [run_id(store, trial)]
        assert server.history(run_id(store, trial)) == list(range(1, n_steps + 1))
        run = server.runs[run_id(store, trial)]
        assert (run["state"], run["group"], run["jobType"]) == ("finished", "tiny", "trial")
        assert run["summary"]["record"]["status"] == "done"
        assert read_json(store.folder(trial.trial_id) / "wandb" / "mirror.json")["mode"] == "online"
        assert unsynced(store.root) == []
        # What it wrote on this disk is a complete run as well
        found = reader.read_files(f"wandb-files:{store.root}")
        expected = records_of(store)
        pd.testing.assert_frame_equal(records.validate(found.frame), expected, check_exact=True)
        require_no_key(tmp_path)


def test_an_offline_trial_that_was_killed_and_resumed_is_one_whole_run(sweep, tmp_path):
    store, trials = sweep
    trial = trials[1]
    env = environment("http://127.0.0.1:9", tmp_path)
    killed = start(ATTEMPT, store.out, trial.trial_id, "offline", 20, 12, env=env)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    finished(start(ATTEMPT, store.out, trial.trial_id, "offline", 20, 0, env=env))
    run = wandb_files.read(wandb_files.only_file(store.folder(trial.trial_id)))
    assert (run.run_id, run.exit_code) == (run_id(store, trial), 0)
    assert [h["_step"] for h in run.history if "train/loss" in h] == list(range(1, 21))
    found = reader.read_files(f"wandb-files:{store.root}")
    expected = records_of(store)
    pd.testing.assert_frame_equal(records.validate(found.frame), expected, check_exact=True)
    require_no_key(tmp_path)


def test_sync_sends_what_is_offline_and_a_project_reads_back_as_the_store(sweep, tmp_path):
    store, trials = sweep
    for trial in trials:
        end_trial(store, trial)
    with refusing() as url:
        code, _, err = parcae("sync", store.root, env=environment(url, tmp_path, None), cwd=ROOT)
        assert code == 2
        assert "no API key for http://127.0.0.1" in err
    with answering() as server:
        env = environment(server.url, tmp_path)
        code, out, err = parcae("sync", store.root, env=env, cwd=ROOT)
        assert code == 0, err
        assert sorted(out.split()) == sorted(run_id(store, t) for t in trials)
        assert server.history(run_id(store, trials[0]))[:20] == list(range(1, 21))
        code, out, err = parcae("sync", store.root, env=env, cwd=ROOT)
        assert (code, out) == (0, "")
        assert "0 runs sent" in err

        reading = "import sys; from sweeps.tracking import reader as w; from analysis.table import records\n"
        reading += (
            "records.validate(w.read_server('wandb:ent/p/tiny').frame).to_parquet(sys.argv[1])\n"
        )
        reading += "print('\"read\"')"
        path = tmp_path / "there.parquet"
        assert finished(start(reading, path, env=env)) == "read"
        there = records.validate(pd.read_parquet(path))
        pd.testing.assert_frame_equal(there, records_of(store), check_exact=True)

        command = ("fit", "wandb:ent/p/tiny", "--law", "recurrence")
        code, out, err = parcae(*command, env=env, cwd=ROOT)
        assert "Traceback" not in err
        assert "wandb:ent/p/tiny" in out + err
        for source, said in (
            ("wandb:ent/other", "has no project 'other' of 'ent'"),
            ("wandb:ent/p/nobody", "no run there holds records (it holds no run)"),
            ("wandb:ent", "wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/GROUP is needed"),
        ):
            code, out, err = parcae("fit", source, "--law", "recurrence", env=env, cwd=ROOT)
            assert (code, out) == (2, ""), err
            assert said in err
            assert "Traceback" not in err
        require_no_key(tmp_path)


@pytest.mark.parametrize(
    ("server", "key", "said"),
    [
        pytest.param(refusing, KEY, "did not answer", marks=pytest.mark.slow),
        (refusing, None, "no API key for http://127.0.0.1"),
    ],
)
def test_a_project_that_cannot_be_asked_is_a_sentence(server, key, said, tmp_path):
    with server() as url:
        env = environment(url, tmp_path, key) | {"WANDB_HTTP_TIMEOUT": "3"}  # W&B's own: 19 s
        began = time.monotonic()
        code, out, err = parcae("fit", "wandb:e/p", "--law", "training", env=env, cwd=ROOT)
    print(f"{server.__name__}: {time.monotonic() - began:.1f} s; {err}")
    assert (code, out) == (2, "")
    assert err.startswith("parcae: wandb:e/p: ")
    assert said in err
    assert "Traceback" not in err
    assert KEY not in err


def test_a_tail_gives_whole_lines_once_and_starts_again_with_a_rewritten_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert tail.read() == [{"step": 1}]
    with path.open("a") as file:
        file.write("}\n")
    assert tail.read() == [{"step": 2}]
    assert tail.read() == []
    (tmp_path / "new").write_text('{"step": 1}\n')
    os.replace(tmp_path / "new", path)  # as a resumed trainer does
    assert tail.read() == [{"step": 1}]
