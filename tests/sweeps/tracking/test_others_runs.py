"""A W&B project of runs that this toolkit did not write: config and summary are columns of a table."""

import pytest

from analysis.errors import InputError
from analysis.table import guess, load
from sweeps.tracking.reader import Run, found


def run(i: int, **summary) -> Run:
    config = {"model": {"n_params": 1e7 * 2**i}, "_wandb": {"x": 1}, "tokens": 2e8 * 2**i}
    return Run(run_id=f"r{i}", state="finished", config=config, summary=summary)


def test_config_and_summary_become_columns_under_their_own_names(monkeypatch):
    runs = [run(i, **{"eval/loss": 3.0 - i / 10, "_step": 5}) for i in range(4)]
    reader = load.Reader(
        claims=lambda text: text == "wandb:a/b", read=lambda text: found(runs, text)
    )
    monkeypatch.setattr(load, "_READERS", {"wandb": reader})
    table = load.load("wandb:a/b", where=("State=finished", "eval/loss<3"))
    assert list(table.frame.n_params) == [2e7, 4e7, 8e7]
    assert list(table.frame.n_tokens) == [4e8, 8e8, 1.6e9]
    assert list(table.frame.val_loss) == pytest.approx([2.9, 2.8, 2.7])
    assert list(table.frame.trial_id) == ["r1", "r2", "r3"]
    rows = load.rows("wandb:a/b")
    command = guess.shown("wandb:a/b", rows.frame, own=rows.own).splitlines()[-1]
    assert command.startswith(
        "parcae fit wandb:a/b --law chinchilla --columns 'run=run,loss=eval/loss,D=tokens"
    )
    mapped = load.load("wandb:a/b", {"N": "model/n_params", "loss": "eval/loss"})
    assert "n_tokens" not in mapped.frame


def test_runs_without_a_summary_are_nothing_to_fit():
    with pytest.raises(InputError, match="no run there holds records"):
        found([run(0)], "wandb:a/b")
