"""A checkpoint is whole or absent, and a damaged one costs no more than the way back to the last."""

import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from parcae_core.checkpoints import native
from parcae_core.checkpoints.native import (
    newest_checkpoint,
    only_writer,
    read_checkpoint,
    save_checkpoint,
)
from parcae_core.errors import UserError
from tests.support.training import tiny_trial


def tensors(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "a.weight": torch.randn(5, 7, generator=generator),
        "b": torch.randn(3, generator=generator),
    }


def save(folder, step, trial=None):
    stacked = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(step))
    return save_checkpoint(
        folder,
        trial=trial or tiny_trial(),
        step=step,
        progress={"step": step, "loss": 1.1 / 3},
        weights=tensors(step),
        optimizer={"m.0": stacked[0], "m.1": stacked[1]},  # views of one storage, as Muon's are
    )


def steps(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_is_read_is_what_was_written(tmp_path):
    found = read_checkpoint(save(tmp_path, 3))
    assert found.step == 3
    assert found.trial == tiny_trial()
    assert found.progress == {"step": 3, "loss": 1.1 / 3}
    assert found.weights.keys() == tensors(3).keys()
    for name, tensor in tensors(3).items():
        assert torch.equal(found.weights[name], tensor)
    assert found.optimizer["m.1"].shape == (4, 4)


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 10, 20):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-000000010", "step-000000020"]


def test_nothing_is_found_in_an_empty_folder(tmp_path):
    assert newest_checkpoint(tmp_path / "checkpoints", tiny_trial()) is None


def cut_short(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def flip_a_byte(path):
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "damage", [cut_short, flip_a_byte, os.remove, lambda p: p.write_bytes(b"")]
)
@pytest.mark.parametrize(
    "file", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json"]
)
def test_a_damaged_newest_one_is_reported_and_the_one_before_it_used(
    tmp_path, caplog, damage, file
):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest / file)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path, tiny_trial()).step == 1
    assert len(caplog.records) == 1
    assert "step-000000002 is damaged" in caplog.text
    # and the same step can be written again over the damaged one
    save(tmp_path, 2)
    assert newest_checkpoint(tmp_path, tiny_trial()).step == 2
    assert steps(tmp_path) == ["step-000000001", "step-000000002"]


def test_with_every_one_damaged_the_run_starts_over_and_says_so(tmp_path, caplog):
    for step in (1, 2):
        cut_short(save(tmp_path, step) / "weights.safetensors")
    assert newest_checkpoint(tmp_path, tiny_trial()) is None
    assert len(caplog.records) == 2


def test_a_half_written_one_is_not_seen_and_is_removed(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / ".writing-000000002"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path, tiny_trial()).step == 1
    save(tmp_path, 3)
    assert steps(tmp_path) == ["step-000000001", "step-000000003"]


def test_the_checkpoint_of_another_trial_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match="give each trial its own folder"):
        newest_checkpoint(tmp_path, tiny_trial(seed=1))


def test_a_newer_format_is_refused_and_not_taken_for_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_FORMAT", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="checkpoint format 99, this version reads 1"):
        newest_checkpoint(tmp_path, tiny_trial())


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = native.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(native.shutil, "disk_usage", lambda _: usage._replace(free=7))
    with pytest.raises(UserError, match=r"0\.0 MB are free.*Earlier checkpoints are intact"):
        save(tmp_path, 2)
    assert steps(tmp_path) == ["step-000000001"]
    assert newest_checkpoint(tmp_path, tiny_trial()).step == 1


def test_a_disk_that_fills_up_while_writing_leaves_the_earlier_ones(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "write_synced", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(tmp_path, 2)
    assert steps(tmp_path) == ["step-000000001"]


class Killed(BaseException):
    """Stands for SIGKILL: no clean-up of ours runs after it."""


def die_at(call, monkeypatch):
    """Die instead of making the given call, counted over everything a save does to the disk."""
    made = iter(range(1, 1000))

    def mortal(function):
        def wrapped(*args, **kwargs):
            if next(made) == call:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    for name in ("write_tensors", "write_synced", "sync"):
        monkeypatch.setattr(native, name, mortal(getattr(native, name)))
    for name in ("mkdir", "rename"):
        monkeypatch.setattr(Path, name, mortal(getattr(Path, name)))
    monkeypatch.setattr(native.shutil, "rmtree", mortal(native.shutil.rmtree))


def test_death_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    for call in range(1, 100):
        folder = tmp_path / str(call)
        for step in (1, 2):
            save(folder, step)
        died = False
        with pytest.MonkeyPatch.context() as monkeypatch:
            die_at(call, monkeypatch)
            try:
                save(folder, 3)
            except Killed:
                died = True
        found = newest_checkpoint(folder, tiny_trial()).step
        if not died:
            break
        assert found in (2, 3)
        assert found == 3 or not (folder / "step-000000003").exists()
        save(folder, found + 1)
        assert steps(folder) == [f"step-{s:09d}" for s in (found, found + 1)]
    assert found == 3
    assert call > 8, "a save touches the disk more often than this"


def try_to_write(folder, answers):
    try:
        with only_writer(folder):
            answers.put("held")
    except UserError as error:
        answers.put(str(error))


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with only_writer(tmp_path):
        other = context.Process(target=try_to_write, args=(tmp_path, answers))
        other.start()
        other.join()
        assert "another process is training in this folder" in answers.get()
        with pytest.raises(UserError), only_writer(tmp_path):  # nor two threads of one process
            pass
    with only_writer(tmp_path):
        pass


def test_the_index_names_size_and_hash_of_each_file(tmp_path):
    index = json.loads((save(tmp_path, 1) / "checkpoint.json").read_text())
    assert index["trial_id"] == tiny_trial().trial_id
    assert index["files"].keys() == {"weights.safetensors", "optimizer.safetensors"}
    for name, entry in index["files"].items():
        assert entry["bytes"] == (tmp_path / "step-000000001" / name).stat().st_size
