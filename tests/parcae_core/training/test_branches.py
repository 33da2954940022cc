"""A branch of a trunk is the separate run of its length, to the last digit."""

import dataclasses
import json
import re

import pytest

from parcae_core.checkpoints.native import DamagedCheckpoint, newest_checkpoint
from parcae_core.result import Interrupted
from parcae_core.training.branches import begin_branch
from parcae_core.training.train import train
from parcae_core.trial import EvalConfig, OptimConfig, Parent
from tests.support.training import EXECUTION, metrics, tiny_trial, write_data

PHASED = OptimConfig(weight_decay_falls="cooldown", cooldown_share=0.4)
# Of this attempt, or of the time that it took
OF_THE_ATTEMPT = {"train_s", "wall_s", "tokens_per_s", "data_wait_share", "shared_steps"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def run(trial, data_dir, run_dir, **execution):
    settings = dataclasses.replace(EXECUTION, **execution)
    return train(trial, data_dir=data_dir, run_dir=run_dir, execution=settings)


def begin(branch, trunk_dir, run_dir):
    return begin_branch(trunk_dir, branch, run_dir)


def lengths(*n_steps, **changes):
    """Trials of these lengths, each the parent of the next."""
    trials = [tiny_trial(**{"n_steps": n, "optim": PHASED} | changes) for n in n_steps]
    out = trials[:1]
    for trial in trials[1:]:
        parent = Parent(trial_id=out[-1].trial_id, step=out[-1].constant_steps)
        out.append(dataclasses.replace(trial, parent=parent))
    return out


def timeless(result):
    return {k: v for k, v in result.to_dict().items() if k not in OF_THE_ATTEMPT}


def weights(run_dir, trial):
    found = newest_checkpoint(run_dir / "checkpoints", trial)
    return {**found.weights, **found.optimizer}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transformer": True},
        {"optim": dataclasses.replace(PHASED, warmup_steps=5)},
        {"evaluation": EvalConfig(loops=(3,), n_sequences=4, every=4)},
    ],
    ids=["looped", "transformer", "warm-up", "measured"],
)
def test_branches_of_branches_end_where_separate_runs_do(data_dir, tmp_path, changes):
    short, middle, long = lengths(8, 13, 21, **changes)
    assert middle.trial_id == dataclasses.replace(middle, parent=None).trial_id
    assert (middle.parent.step, long.parent.step) == (5, 8)
    run(short, data_dir, tmp_path / "a", keep_steps=(5,))
    begin(middle, tmp_path / "a", tmp_path / "b")
    run(middle, data_dir, tmp_path / "b", keep_steps=(8,))
    begin(long, tmp_path / "b", tmp_path / "c")
    for branch, folder in ((middle, "b"), (long, "c")):
        as_branch = run(branch, data_dir, tmp_path / folder)
        alone = run(
            dataclasses.replace(branch, parent=None), data_dir, tmp_path / f"{folder}-alone"
        )
        assert timeless(as_branch) == timeless(alone)
        assert (as_branch.shared_steps, alone.shared_steps) == (branch.parent.step, 0)
        found, wanted = (weights(tmp_path / f, branch) for f in (folder, f"{folder}-alone"))
        assert found.keys() == wanted.keys()
        assert all(found[name].equal(wanted[name]) for name in wanted)


def test_the_published_schedule_has_no_common_beginning(data_dir, tmp_path):
    short, long = lengths(8, 13, optim=OptimConfig(cooldown_share=0.4))
    run(short, data_dir, tmp_path / "a", keep_steps=(5,))
    words = f"{long.trial_id} makes other updates in its first 5 steps than trial {short.trial_id}"
    with pytest.raises(ValueError, match=words):
        begin(long, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_no_branch_leaves_within_a_cool_down_nor_from_another_training(data_dir, tmp_path):
    short, long = lengths(8, 13)
    run(short, data_dir, tmp_path / "a", keep_steps=(5, 6))
    late = dataclasses.replace(long, parent=Parent(trial_id=short.trial_id, step=6))
    other = dataclasses.replace(long, seed=1)
    for branch in (late, other):
        with pytest.raises(ValueError, match="makes other updates in its first"):
            begin(branch, tmp_path / "a", tmp_path / "b")


def test_a_trunk_that_dies_before_it_keeps_its_checkpoint_keeps_it_next_time(data_dir, tmp_path):
    short, long = lengths(8, 13)
    asked = iter([False] * 5 + [True])
    with pytest.raises(Interrupted):  # its last checkpoint is the one to keep, and was not kept
        run(short, data_dir, tmp_path, stop_requested=lambda: next(asked))
    assert not (tmp_path / "branches").exists()
    run(short, data_dir, tmp_path, keep_steps=(5,))
    found = newest_checkpoint(begin(long, tmp_path, tmp_path / "b").parent, long)
    assert (found.step, found.progress["shared_steps"]) == (5, 5)


def test_what_is_kept_outlives_the_trunks_own_checkpoints(data_dir, tmp_path):
    short, _ = lengths(20, 30)
    run(short, data_dir, tmp_path, keep_steps=(12,), checkpoint_every_steps=1)
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("step-*"))] == [
        "step-000000019", "step-000000020",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "branches").iterdir()] == ["step-000000012"]
    assert metrics(tmp_path)[-1]["step"] == 20


def test_a_changed_checkpoint_begins_no_branch(data_dir, tmp_path):
    short, long = lengths(8, 13)
    run(short, data_dir, tmp_path / "a", keep_steps=(5,))
    index = tmp_path / "a" / "branches" / "step-000000005" / "checkpoint.json"
    index.write_text(re.sub('"step": 5', '"step": 4', index.read_text()))
    assert json.loads(index.read_text())["step"] == 4
    with pytest.raises(DamagedCheckpoint, match="not as it was written"):
        begin(long, tmp_path / "a", tmp_path / "b")
