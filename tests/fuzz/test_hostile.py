"""Files from a hostile hand: every command ends with a message, whatever it is given to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# name -> cases in the suite, and in `make test-slow`
CASES = {
    "specs": (60, 1_500),
    "checkpoints": (15, 150),
    "published": (15, 150),
    "tokenizers": (25, 300),
    "prepared": (25, 300),
    "corpora": (25, 300),
    "tables": (25, 300),
    "wandb": (25, 300),
    "sweeps": (40, 600),
}
ROOT = Path(__file__).parents[2]


def hostile(target: str, n_cases: int, folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "tests.fuzz.child", target, str(n_cases), str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-2_000:])
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-8_000:]


@pytest.mark.parametrize("target", CASES)
def test_hostile_files_end_in_a_message(target, tmp_path):
    hostile(target, CASES[target][0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", CASES)
def test_many_hostile_files_end_in_a_message(target, tmp_path):
    hostile(target, CASES[target][1], tmp_path)
