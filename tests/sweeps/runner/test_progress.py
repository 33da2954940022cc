"""What is printed, on a terminal and elsewhere, from the store alone."""

import io
import pickle
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.runner.progress import Progress, StopWhenIdle
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec
from tests.sweeps.test_store import good_result, put, report


@pytest.fixture
def watched(tmp_path):
    """(make, store, trials, Tune's view of them): make(terminal) gives (progress, its output)."""
    plan = tiny_plan()
    store = Store(tmp_path, plan.name)
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    views = [
        SimpleNamespace(config={"trial_id": t.trial_id}, status="RUNNING", num_failures=4)
        for t in plan.trials
    ]

    def make(terminal: bool):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120)
        progress = Progress(store, list(plan.trials), console=console)
        progress.said_at -= 60
        return progress, out

    return make, store, plan.trials, views


def test_plain_lines_say_what_runs_and_what_ended(watched):
    make, store, trials, views = watched
    progress, out = make(terminal=False)
    report(store, trials[0], state="running", step=40, loss=2.5)
    with progress:
        progress.on_step_end(1, views[:1])
        put(store, trials[0], good_result(trials[0]))
        progress.on_trial_complete(2, views, views[0])
        progress.on_trial_recover(3, views, views[1])
        progress.on_trial_error(4, views, views[1])
        report(store, trials[2], state="failed", reason="ValueError: [no] such thing")
        progress.on_trial_complete(5, views, views[2])
    text = out.getvalue()
    pickle.dumps(progress)  # as Tune does with every callback
    assert "\x1b" not in text
    assert f"0 of 4 ended; {trials[0].trial_id} C=4e8 mu=1 step 40/86 loss 2.500" in text
    assert "mu=1: done, val_loss 3.0000 (1 of 4 finished)" in text
    assert "worker lost at step 0: its worker is gone, and nothing says why; starting again" in text
    assert "(1 of 3 losses without progress)" in text
    assert "nothing says why; given up after 2 losses without progress" in text
    assert views[1].max_failures == 4 + 1  # Tune's count and what is left
    assert "failed: ValueError: [no] such thing" in text


def test_a_terminal_gets_a_live_table(watched):
    make, store, trials, views = watched
    progress, out = make(terminal=True)
    report(store, trials[1], state="running", step=40, loss=2.5, tokens_per_s=1234.0)
    with progress:
        progress.on_step_end(1, views[1:2])
    text = out.getvalue()
    assert "\x1b[" in text
    assert "tiny: 0 of 4 ended" in text
    assert "40/77" in text
    assert "1,234" in text


def test_a_signal_ends_the_run_at_once_when_nothing_runs_and_else_after_it():
    signals: list[int] = []
    progress = SimpleNamespace(n_running=0)
    stopper = StopWhenIdle(signals, progress)
    assert not stopper.stop_all()  # trials may be waiting for a node
    signals.append(15)
    assert stopper.stop_all()
    progress.n_running = 1
    assert not stopper.stop_all()  # it is writing its checkpoint
    assert not stopper("a", {})
