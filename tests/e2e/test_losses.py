"""Workers lost for a reason, on a real private cluster: the reason is said, and what counts is counted."""

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from sweeps.cli.sweep import load_plan
from sweeps.runner.driver import Options, run
from sweeps.store import Store
from tests.support.tiny import write_spec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def one_trial(folder: Path, n_tokens: int):
    return write_spec(
        folder, design="test_time", budgets_flops=None, n_tokens=n_tokens, mean_recurrence=[2]
    )


def module_that_only_the_driver_has() -> types.ModuleType:
    module = types.ModuleType("only_here")
    exec("def train(trial, **options):\n    raise AssertionError('never found')", module.__dict__)
    sys.modules["only_here"] = module
    return module


def run_without_the_module(folder: Path) -> None:
    spec = one_trial(folder, 64 * 50)
    plan = load_plan(spec)
    options = Options(cpus=1, lost_workers=1, train=module_that_only_the_driver_has().train)
    print(run(plan, Store(folder / "runs", plan.name), spec, options=options).states)


def run_and_lose(folder: Path, kills: int) -> None:
    spec = one_trial(folder, 64 * 6_000)
    plan = load_plan(spec)
    store = Store(folder / "runs", plan.name)
    trial_id = plan.trial_ids[0]

    def kill() -> None:
        """Each time that there is a checkpoint newer than at the last kill."""
        last = 0
        for _ in range(kills):
            while (report := store.report(trial_id)) is None or report.checkpoint_step <= last:
                time.sleep(0.2)
            last = report.checkpoint_step
            os.kill(report.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    options = Options(cpus=1, lost_workers=1, checkpoint_every_s=0.3)
    print(run(plan, store, spec, options=options).states)


def child(what: str, folder: Path, *more: int) -> subprocess.CompletedProcess:
    call = f"from tests.e2e.test_losses import *; {what}(Path({str(folder)!r}), *{more})"
    return subprocess.run(
        [sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_module_that_the_worker_lacks_is_named_with_the_way_out(tmp_path):
    done = child("run_without_the_module", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "worker lost at step 0: its node has no module 'only_here'" in done.stderr
    assert "given up after 2 losses without progress" in done.stderr
    assert "Install the same versions on every node" in done.stderr
    store = Store(tmp_path / "runs", "tiny")
    [trial] = store.stored_trials()
    assert "no module 'only_here'" in store.state(trial).reason
    assert store.state(trial).lost_workers == 2


def test_more_losses_than_allowed_are_survived_if_each_made_progress(tmp_path):
    done = child("run_and_lose", tmp_path, 4)
    assert done.returncode == 0, done.stderr
    assert "'done'" in done.stdout
    assert done.stderr.count("its process was killed from outside or crashed") == 4
    store = Store(tmp_path / "runs", "tiny")
    [trial] = store.stored_trials()
    assert store.state(trial).lost_workers == 4
