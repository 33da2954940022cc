"""What is printed, on a terminal and elsewhere, from the store alone."""

import io
import pickle
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.branches import Waiting
from sweeps.runner.display import EVERY_S, Pace, label
from sweeps.runner.progress import InOrder, Progress, StopWhenIdle
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
        console = Console(file=out, force_terminal=terminal, width=80, height=24)
        return Progress(store, list(plan.trials), console=console), out

    return make, store, plan.trials, views


def test_plain_lines_say_what_runs_and_what_ended(watched):
    make, store, trials, views = watched
    progress, out = make(terminal=False)
    report(store, trials[0], state="running", step=40, loss=2.5)
    with progress.display:
        progress.on_step_end(1, views[:1])
        put(store, trials[0], good_result(trials[0]))
        progress.on_trial_complete(2, views, views[0])
        progress.on_trial_recover(3, views, views[1])
        progress.on_trial_error(4, views, views[1])
        report(store, trials[2], state="failed", reason="ValueError: [no] such thing")
        progress.on_trial_complete(5, views, views[2])
    text = out.getvalue()
    pickle.dumps(progress)  # as Tune does with every callback, and with its searcher
    pickle.dumps(InOrder(Waiting(store, trials, progress.say)))
    assert "\x1b" not in text
    assert f"0 of 4 ended; {trials[0].trial_id} C=4e8 mu=1 step 40/86 loss 2.500" in text
    assert "mu=1: done, val_loss 3.0000 (1 of 4 finished)" in text
    assert "worker lost at step 0: its worker is gone, and nothing says why; starting again" in text
    assert "(1 of 3 losses without progress)" in text
    assert "nothing says why; given up after 2 losses without progress" in text
    assert views[1].max_failures == 4 + 1  # Tune's count and what is left
    assert "failed: ValueError: [no] such thing" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_candidates_are_not_counted_nor_is_their_time_left(watched, terminal):
    make, store, trials, views = watched
    progress, out = make(terminal)
    progress.display.open_ended = True
    report(store, trials[0], state="running", step=40, loss=2.5)
    with progress.display:
        progress.on_step_end(1, views[:1])
        put(store, trials[0], good_result(trials[0]))
        progress.on_trial_complete(2, views, views[0])
    text = out.getvalue()
    assert "done, val_loss 3.0000 (1 finished)" in text
    assert " of 4" not in text
    assert progress.display._left() == ""


def test_a_terminal_gets_bars_that_cut_no_number_at_80_columns(watched):
    make, store, trials, views = watched
    store.name = "a-sweep-whose-name-is-nearly-as-long-as-a-paper"
    progress, out = make(terminal=True)
    progress.display.pace.left_s = lambda: 45 * 3600.0
    report(store, trials[1], state="running", step=1234567, loss=12.345)
    with progress.display:
        progress.on_step_end(1, views[1:2])
        progress.display.say(
            f"{label(trials[1])}: worker lost at step 1,234,567: its node is gone; starting"
        )
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert text != out.getvalue()  # bars were drawn
    assert "0 of 4" in text
    assert "about 45.0 h left" in text
    assert f"{trials[1].trial_id} C=4e8 mu=2" in text
    assert "1,234,567/77" in text
    assert "loss 12.345" in text
    assert "worker lost at step 1,234,567:" in text
    assert "…" not in text
    assert max(map(len, re.split(r"[\r\n]+", text))) <= 80


def test_without_a_terminal_there_is_a_line_every_half_minute(watched):
    make, store, trials, views = watched
    progress, out = make(terminal=False)
    with progress.display:
        for step in range(1, 4):
            report(store, trials[0], state="running", step=step)
            progress.on_step_end(step, views[:1])
        assert out.getvalue().count("step 1/86") == 1
        assert "step 2/86" not in out.getvalue()
        progress.display.shown_at -= EVERY_S
        progress.on_step_end(5, views[:1])
    assert out.getvalue().count("step 3/86") == 1


def test_more_trials_than_lines_are_counted(watched):
    make, store, trials, views = watched
    progress, out = make(terminal=True)
    progress.display.console.height = 6
    for trial in trials:
        report(store, trial, state="running", step=1)
    with progress.display:
        progress.on_step_end(1, views)
    assert "2 more run" in out.getvalue()
    assert trials[1].trial_id in out.getvalue()
    assert trials[2].trial_id not in out.getvalue()


def test_the_time_left_follows_the_last_minute_of_this_session():
    trials = tiny_plan(mean_recurrence=[2], budgets_flops=[4e8], seeds=[0, 1]).trials
    first, second = (t.trial_id for t in trials)
    n = trials[0].n_steps  # 77
    pace = Pace(trials, {first: 50, second: 0}, now=0.0)
    pace.see({first: 50}, (), now=10.0)
    assert pace.left_s() is None  # nothing made yet, and too early
    pace.see({first: 52}, (), now=40.0)  # 2 steps in 40 s; the 50 of before do not count
    assert pace.left_s() == pytest.approx((n - 52 + n) * 20)
    pace.see({first: 72}, (), now=70.0)
    pace.see({first: n}, (first,), now=100.0)  # 25 steps since the look 60 s ago
    assert pace.left_s() == pytest.approx(n * 60 / 25)
    pace.see({second: 10}, (second,), now=110.0)  # it diverged: nothing is left of it
    assert pace.left_s() == 0


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
