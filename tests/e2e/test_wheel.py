"""The built wheel by itself, outside the checkout: what the product reads lies inside it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweeps.design.benchmark_rates import RATES, read
from tests.support.tiny import SPEC

ROOT = Path(__file__).parents[2]
SOURCES = ("analysis", "parcae_core", "sweeps", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the wheel's content and nothing of the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # a copy: building leaves folders behind
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", place, source], check=True
    )
    [wheel] = place.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", place / "site", wheel], check=True)
    return place / "site"


def plan(installed: Path, folder: Path, *options: str) -> dict:
    """`parcae plan --json` of the installed wheel, run in a folder of its own."""
    program = "import sweeps.cli.app as app; print(app.__file__); app.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", *options, "--json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, _, answer = done.stdout.partition("\n")
    assert Path(where).is_relative_to(installed)
    return json.loads(answer)


@pytest.mark.slow
def test_an_installed_plan_knows_the_measured_rates(installed, tmp_path):
    row = read(RATES)[-1]
    spec = SPEC | {
        "preset": row.preset,
        "model": {"context": 256},
        "mean_recurrence": [2],
        "budgets_flops": [1e15],
        "data": {"corpus": "python-stdlib"},
        "precision": row.precision,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(spec))
    answer = plan(installed, tmp_path, "small.yaml", "--device", row.device)
    assert answer["rate"]["source"] == f"from benchmark rows for {row.device}: {row.source}"
    trial = answer["trials"][0]
    assert trial["estimated_s"] == pytest.approx(trial["train_flops"]["exact"] / row.flops_per_s)


@pytest.mark.slow
def test_an_installed_plan_finds_the_specs_and_the_types_are_marked(installed, tmp_path):
    answer = plan(installed, tmp_path, str(installed / "sweeps/specs/demo.yaml"))
    assert answer["totals"]["trials"] == len(answer["trials"]) > 0
    for package in ("analysis", "parcae_core", "sweeps"):
        assert (installed / package / "py.typed").is_file()
