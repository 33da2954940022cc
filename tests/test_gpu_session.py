"""The session on a card, rehearsed whole on a CPU as a rented machine would find it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu_session import REHEARSAL, Sizes, Stage, run, stages
from benchmarks.session_stages import fitting
from parcae_core.trial import trial_from_dict

ROOT = Path(__file__).parents[1]
# what a machine lent by the minute does not have, or has no use for
BLOCKER = """
import importlib.abc, sys
MISSING = {
    "ray", "pydantic", "pydantic_core", "wandb", "liger_kernel", "rustbpe", "moto", "s3fs", "boto3",
    "annotated_types", "nbformat", "ipykernel",
}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def bare(tmp_path):
    """(checkout without .git, environment in which imports of what is missing fail)."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for room in ("parcae_core", "benchmarks", "analysis", "sweeps", "tests"):
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKER)
    env = dict(os.environ) | {
        "PYTHONPATH": str(site), "PARCAE_COMMIT": "0123abcd", "GIT_CEILING_DIRECTORIES": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return checkout, env


def python(bare, *args, timeout):
    checkout, env = bare
    return subprocess.run(
        [sys.executable, *args], cwd=checkout, env=env, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def test_a_rehearsal_passes_on_a_bare_machine_and_brings_everything_back(bare, tmp_path):
    out = tmp_path / "out"
    done = python(
        bare, "-m", "benchmarks.gpu_session", "--rehearse", "--out", str(out), timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((out / "state.json").read_text())
    assert list(state) == [s.name for s in stages(REHEARSAL, out)]
    assert {row["status"] for row in state.values()} == {"done"}

    files = [p for p in out.iterdir() if p.is_file()]
    assert len(files) <= 8
    assert sum(p.stat().st_size for p in files) < 2 << 20
    with (out / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["variant"] for r in rows} >= {"ours", "masked compiled", "ours replayed", "eager"}
    assert {r["commit"] for r in rows} == {"0123abcd"}
    with tarfile.open(out / "law.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    law = tmp_path / "gpu-law"
    results = [json.loads(p.read_text()) for p in law.glob("*/result.json")]
    trials = [trial_from_dict(json.loads(p.read_text())) for p in law.glob("*/trial.json")]
    assert {r["status"] for r in results} == {"done"}
    # the budget of 1e14 FLOPs was dropped, but for the trial that measured the rate
    small = [t for t in trials if t.budget_flops < 1e14]
    assert {t.trial_id for t in small} == {r["trial_id"] for r in results}
    assert {t.mean_recurrence for t in small} == {1, 2, 4}

    again = python(
        bare,
        "-m",
        "benchmarks.gpu_session",
        "--rehearse",
        "--out",
        str(out),
        "--resume",
        timeout=60,
    )
    assert again.returncode == 0
    assert "probe" not in again.stdout.split("probe.json")[0]  # nothing ran again


def test_tests_for_a_card_are_collected_on_a_bare_machine(bare):
    done = python(
        bare, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider",
        *(f"tests/parcae_core/{room}" for room in ("kernels", "model", "training")), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_under_autocast_the_kernels_are_as_accurate_as_torch" in done.stdout


def test_a_stage_that_fails_or_hangs_is_a_row_and_the_next_one_runs(tmp_path, capsys):
    wanted = [
        Stage(name="wrong", box_s=60, command=["benchmarks.nowhere"]),
        Stage(name="slow", box_s=0.5, command=["timeit", "-n", "1", "import time; time.sleep(60)"]),
        Stage(name="right", box_s=60, command=["timeit", "-n", "1", "-r", "1", "pass"]),
    ]
    assert not run(wanted, tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    assert [row["status"] for row in state.values()] == ["failed", "timed out", "done"]
    assert "No module named 'benchmarks.nowhere'" in state["wrong"]["said"][-1]
    capsys.readouterr()
    run(wanted[2:], tmp_path)
    assert capsys.readouterr().out == ""  # done is not done again


def test_what_does_not_fit_into_the_time_waits(tmp_path, capsys):
    def stage(name, box_s, **more):
        return Stage(
            name=name, box_s=box_s, command=["timeit", "-n", "1", "-r", "1", "pass"], **more
        )

    wanted = [stage("long", 500), stage("short", 50), stage("law", 500, least_s=60)]
    assert not run(wanted, tmp_path, seconds=100)
    state = json.loads((tmp_path / "state.json").read_text())
    assert list(state) == ["short", "law"]
    assert 60 < state["law"]["box_s"] <= 100
    assert "long" in capsys.readouterr().out


def test_what_is_worth_most_fits_into_one_call(tmp_path):
    planned = stages(Sizes(), tmp_path)
    assert len({s.name for s in planned}) == len(planned)
    names = [s.name for s in planned]
    first = planned[: names.index("step-masked-compiled") + 1]
    # ten minutes a command, a quarter of an hour of a device
    assert sum(s.box_s for s in first) <= 560
    assert all((s.least_s or s.box_s) <= 280 for s in planned)


def test_the_largest_budgets_are_dropped_until_the_rest_fits():
    assert fitting([4.0, 1.0, 2.0], lambda b: 10 * b, 35) == [1.0, 2.0]
    assert fitting([4.0, 1.0, 2.0], lambda b: 10 * b, 70) == [1.0, 2.0, 4.0]
    assert fitting([4.0], lambda b: 10 * b, 35) == []
