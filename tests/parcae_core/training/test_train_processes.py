"""Runs in processes of their own: killed, told to stop, several at once, and on a full disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parcae_core.checkpoints.native import newest_checkpoint
from parcae_core.trial import EvalConfig
from tests.support.training import metrics, tiny_trial, write_data
from tests.support.worker import STOPPED, Worker, count_lines

TIMES = {"wall_s", "train_s", "tokens_per_s", "data_wait_share"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("n_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_points_the_run_ends_the_same(data_dir, tmp_path, n_kills):
    measured = EvalConfig(loops=(1, 3), n_sequences=4, every=5)
    trial = tiny_trial(n_steps=60 * n_kills, evaluation=measured)
    whole = Worker(trial, data_dir, tmp_path / "whole").result()
    chance = random.Random(0)
    for _ in range(n_kills):
        worker = Worker(trial, data_dir, tmp_path / "killed", checkpoint_every_steps=7)
        made = count_lines(tmp_path / "killed")
        worker.wait_for_line(made + chance.randrange(1, trial.n_steps // n_kills))
        time.sleep(chance.random() * 0.02)  # anywhere inside a step or a save
        worker.process.kill()
        assert worker.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    result = Worker(trial, data_dir, tmp_path / "killed").result()
    assert result["n_resumed"] >= 1
    for field in ("status", "step", "evaluation", "final_train_loss", "train_flops_sampled"):
        assert result[field] == whole[field]
    assert len(whole["val_history"]) == trial.n_steps // 5
    assert result["val_history"] == whole["val_history"]
    lines = [metrics(tmp_path / name) for name in ("whole", "killed")]
    assert [line["step"] for line in lines[1]] == list(range(1, trial.n_steps + 1))
    losses = [[line["train/loss"] for line in run] for run in lines]
    assert losses[0] == losses[1]


def test_sigterm_saves_and_exits_in_its_grace_time(data_dir, tmp_path):
    trial = tiny_trial(n_steps=100_000)
    worker = Worker(trial, data_dir, tmp_path)
    worker.wait_for_line(5)
    told = time.monotonic()
    worker.process.terminate()
    assert worker.wait() == STOPPED
    assert time.monotonic() - told < 5
    saved = newest_checkpoint(tmp_path / "checkpoints", trial)
    assert saved.step == metrics(tmp_path)[-1]["step"]


def together(trial, data_dir, run_dir, n_processes, **execution):
    return [
        Worker(trial, data_dir, run_dir, rank=rank, n_processes=n_processes, **execution)
        for rank in range(n_processes)
    ]


def without_times(result):
    return {k: v for k, v in result.items() if k not in TIMES}


@pytest.mark.parametrize("n_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("transformer", [False, True])
def test_several_processes_train_as_one_does(data_dir, tmp_path, transformer, n_processes):
    measured = EvalConfig(loops=(1,) if transformer else (1, 3), n_sequences=4, every=8)
    trial = tiny_trial(n_steps=20, transformer=transformer, evaluation=measured)
    alone = Worker(trial, data_dir, tmp_path / "alone").result()
    first, *others = [w.result() for w in together(trial, data_dir, tmp_path / "n", n_processes)]
    assert first["n_processes"] == n_processes
    for other in others:
        assert without_times(other) == without_times(first)
    losses = [[line["train/loss"] for line in metrics(tmp_path / n)] for n in ("alone", "n")]
    # float32 sums in another order, over 20 updates; another depth or initial state anywhere
    # would show in the second digit
    assert losses[1] == pytest.approx(losses[0], abs=5e-4)
    for field in ("core_sequence_steps", "core_sequence_steps_ideal", "train_flops_sampled"):
        assert first[field] == alone[field]
    for row, row_alone in zip(first["evaluation"], alone["evaluation"], strict=True):
        assert row["val_loss"] == pytest.approx(row_alone["val_loss"], abs=5e-4)
    assert [step for step, _ in first["val_history"]] == [8, 16, 20]
    pair = [[loss for _, loss in r["val_history"]] for r in (first, alone)]
    assert pair[0] == pytest.approx(pair[1], abs=5e-4)


def test_processes_stop_together_and_another_number_of_them_goes_on(data_dir, tmp_path):
    trial = tiny_trial(n_steps=100_000)
    workers = together(trial, data_dir, tmp_path, 2)
    workers[0].wait_for_line(5)
    workers[1].process.terminate()  # only one of them is told
    assert [w.wait() for w in workers] == [STOPPED, STOPPED]
    saved = newest_checkpoint(tmp_path / "checkpoints", trial)
    assert saved.step == metrics(tmp_path)[-1]["step"]
    alone = Worker(trial, data_dir, tmp_path)
    alone.wait_for_line(saved.step + 3)
    alone.process.terminate()
    assert alone.wait() == STOPPED
    assert newest_checkpoint(tmp_path / "checkpoints", trial).step >= saved.step + 3


FULL_DISK = """
import subprocess, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
from parcae_core.checkpoints import native
from parcae_core.checkpoints.native import newest_checkpoint
from parcae_core.errors import UserError
from parcae_core.training.train import train
from tests.support.training import EXECUTION, tiny_trial
import dataclasses
data_dir, small, roomy = map(Path, sys.argv[1:])
trial = tiny_trial(n_steps=20)
often = dataclasses.replace(EXECUTION, checkpoint_every_steps=4)
whole = train(trial, data_dir=data_dir, run_dir=roomy, execution=often)
size = sum(f.stat().st_size for f in (roomy / "checkpoints").glob("*/*")) // 2
def disk(n_bytes):
    subprocess.run(["mount", "-o", f"remount,size={n_bytes}", str(small)], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small)], check=True)

disk(size * 5 // 2)  # room for two, and the third is written before the first is dropped
try:
    train(trial, data_dir=data_dir, run_dir=small, execution=often)
    raise SystemExit("the disk did not fill up")
except UserError as error:
    print("checkpoint:", error)
assert newest_checkpoint(small / "checkpoints", trial).step == 8
assert sorted(p.name for p in (small / "checkpoints").iterdir()) == ["step-000000004", "step-000000008"]

# the same without the look at the free space beforehand: the disk fills up while writing
usage = native.shutil.disk_usage
native.shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 40)
try:
    train(trial, data_dir=data_dir, run_dir=small, execution=often)
    raise SystemExit("the disk did not fill up")
except UserError as error:
    print("writing:", error)
native.shutil.disk_usage = usage
assert newest_checkpoint(small / "checkpoints", trial).step == 8
assert sorted(p.name for p in (small / "checkpoints").iterdir()) == ["step-000000004", "step-000000008"]

filler = small / "filler"  # not a byte left: now the metrics cannot be written
try:
    with filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
try:
    train(trial, data_dir=data_dir, run_dir=small, execution=often)
    raise SystemExit("the disk was not full")
except UserError as error:
    print("metrics:", error)
filler.unlink()

disk(size * 10)
again = train(trial, data_dir=data_dir, run_dir=small, execution=often)
assert again.evaluation == whole.evaluation
assert again.n_resumed == 1  # the attempts on the full disk left no checkpoint of their own
"""


def test_a_full_disk_is_said_and_with_room_again_the_run_goes_on(data_dir, tmp_path):
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    small = tmp_path / "small"
    small.mkdir()
    probe = [*own_mounts, "mount", "-t", "tmpfs", "tmpfs", str(small)]
    if sys.platform != "linux" or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own for a small tmpfs")
    done = subprocess.run(
        [*own_mounts, sys.executable, "-c", FULL_DISK, data_dir, small, tmp_path / "roomy"],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    checkpoint, writing, metrics_line = done.stdout.splitlines()
    assert "step-000000012: the checkpoint cannot be written" in writing
    assert "No space left on device" in writing
    assert "step-000000012: the checkpoint cannot be written" in checkpoint
    assert "MB are free" in checkpoint
    assert "metrics.jsonl" in metrics_line
    assert "No space left on device" in metrics_line


LITTLE_MEMORY = """
import dataclasses, json, re, resource, sys
from pathlib import Path
from parcae_core.training.train import train
from tests.support.training import EXECUTION, tiny_trial
data_dir, run_dir = map(Path, sys.argv[1:])
train(tiny_trial(n_steps=1), data_dir=data_dir, run_dir=run_dir / "first", execution=EXECUTION)
wide = {"d_model": 128, "d_ff": 512, "value_gate_width": 32}
trial = tiny_trial(n_steps=3, batch_sequences=512, model=wide)
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
limit = resource.getrlimit(resource.RLIMIT_AS)
results = []
for micro, bound in (("auto", used + 120 * 2**20), (None, limit[0])):
    resource.setrlimit(resource.RLIMIT_AS, (bound, limit[1]))
    execution = dataclasses.replace(EXECUTION, micro_batch_sequences=micro)
    folder = run_dir / str(micro)
    results.append(train(trial, data_dir=data_dir, run_dir=folder, execution=execution).to_dict())
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_memory_that_really_runs_out_is_met_with_smaller_portions(data_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, data_dir, tmp_path],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    little, enough = json.loads(done.stdout)
    assert little["n_out_of_memory"] >= 1
    assert little["micro_batch_sequences"] == 512 >> little["n_out_of_memory"]
    assert enough["n_out_of_memory"] == 0
    for a, b in zip(little["evaluation"], enough["evaluation"], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-5)  # float32, 3 updates
