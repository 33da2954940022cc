"""Why a worker is gone, as Ray and the system say it, and which losses count."""

import signal

import pytest

from sweeps.cli.tables.status import status_data
from sweeps.reports import StateReport
from sweeps.runner.losses import Losses, loss_of, loss_of_process
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec
from tests.sweeps.test_store import report

# As Ray 2.60 words them
KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
    "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes "
    "include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force "
    "was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected error."
)
MEMORY = (
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.1, ID: 0a) "
    "where the task was running was 61.03GB / 62.00GB (0.98), which exceeds the memory usage threshold"
)
MODULE = (
    "ray::ImplicitFunc.__init__() (pid=7)\n  File 'trainable.py'\nModuleNotFoundError: No module named "
    "'parcae_core.data'"
)

UNAVAILABLE = (
    "The actor 67604ca8 is unavailable: The actor is temporarily unavailable: RpcError: RPC error: Socket "
    "closed rpc_code: 14. The task may or may not have been executed on the actor."
)


@pytest.mark.parametrize(
    ("error", "reason", "advice"),
    [
        (KILLED, "its process was killed from outside or crashed", "resources.cpus"),
        (MEMORY, "Ray ended it because its node ran low on memory with 61.03GB / 62.00GB", "batch"),
        (MODULE, "its node has no module 'parcae_core.data'", "Install the same versions"),
        ("ray.exceptions.NodeDiedError: node 0a1b has died", "its node is gone", ""),
        (UNAVAILABLE, "its process or its node does not answer any more", ""),
        ("Traceback\n  x\nOSError: [Errno 28] No space left", "OSError: [Errno 28] No space", ""),
        (None, "nothing says why", ""),
    ],
)
def test_the_reason_and_the_advice_fit(error, reason, advice):
    loss = loss_of(error)
    assert reason in loss.reason
    assert advice in loss.advice
    assert bool(advice) == bool(loss.advice)


def test_a_process_of_ours_says_its_signal():
    assert "killed by SIGKILL" in loss_of_process(-signal.SIGKILL).reason
    assert loss_of_process(-signal.SIGSEGV).reason == "its process was ended by SIGSEGV"
    assert loss_of_process(3).reason == "its process ended with exit code 3"


@pytest.fixture
def watched(tmp_path):
    plan = tiny_plan()
    store = Store(tmp_path, plan.name)
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    trial = plan.trials[0]
    return store, trial, Losses(store, plan.trials, allowed=2)


def test_losses_count_only_while_there_is_no_newer_checkpoint(watched):
    store, trial, losses = watched
    for step in range(10, 60, 10):  # five losses, each with progress
        report(store, trial, state="running", step=step + 3, checkpoint_step=step)
        assert losses.left(trial.trial_id) == 3
        line = losses.record(trial, loss_of(KILLED))
        assert f"starting again from its last checkpoint, step {step}" in line
    assert losses.counted[trial.trial_id] == 0
    for n in (1, 2):
        report(store, trial, state="running", step=53, checkpoint_step=50)
        assert losses.left(trial.trial_id) == 3 - n
        assert f"({n} of 2 losses without progress)" in losses.record(trial, loss_of(KILLED))
    report(store, trial, state="running", step=53, checkpoint_step=50)
    assert losses.left(trial.trial_id) == 0
    line = losses.record(trial, loss_of(KILLED))
    assert "given up after 3 losses without progress" in line
    assert "resources.cpus" in line


def test_the_reason_is_in_state_json_and_in_status(watched):
    store, trial, losses = watched
    report(store, trial, state="running", step=40, checkpoint_step=30)
    losses.record(trial, loss_of(MODULE))
    kept = StateReport.read(store.files(trial.trial_id).state)
    assert kept.state == "planned"
    assert kept.lost_workers == 1
    assert kept.reason.startswith(
        "worker lost at step 40: its node has no module 'parcae_core.data'"
    )
    row = status_data(store)["trials"][0]
    assert row["reason"] == kept.reason
    # An attempt that runs again keeps what was lost before
    report(store, trial, state="running", lost_workers=1, lost_reason=kept.lost_reason)
    row = status_data(store)["trials"][0]
    assert (row["reason"], row["lost_workers"]) == (None, 1)
    assert "no module" in row["lost_reason"]


def test_what_the_worker_could_still_say_is_kept(watched):
    store, trial, losses = watched
    full = "[Errno 28] No space left on device"
    report(store, trial, state="planned", step=4, attempts=1, reason=full)
    assert "worker lost at step 4: [Errno 28] No space left" in losses.record(
        trial, loss_of(KILLED)
    )
    # A worker that never began said nothing, and the line before is not quoted in the next
    again = losses.record(trial, loss_of(MODULE))
    assert again.startswith("worker lost at step 4: its node has no module")
