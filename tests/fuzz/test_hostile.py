"""Files from a hostile hand: every command ends with a message, whatever it is given to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# target -> cases in the suite, and in `make test-slow`
CASES = {
    "specs": (40, 1_500),
    "corpora": (15, 300),
    "tokenizers": (15, 300),
    "sweeps": (20, 600),
    "wandb": (8, 300),
    "tables": (6, 300),
    "prepared": (10, 300),
    "checkpoints": (8, 150),
    "published": (8, 150),
}
ROOT = Path(__file__).parents[2]


def hostile(folder: Path, cases: dict[str, int]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "WANDB_SILENT": "true"}
    wanted = [f"{target}={n}" for target, n in cases.items()]
    command = [sys.executable, "-m", "tests.fuzz.child", str(folder), *wanted]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-2_000:])
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-8_000:]


def test_hostile_files_end_in_a_message(tmp_path):
    hostile(
        tmp_path, {target: few for target, (few, _) in CASES.items()}
    )  # in one process: imports


@pytest.mark.slow
@pytest.mark.parametrize("target", CASES)
def test_many_hostile_files_end_in_a_message(target, tmp_path):
    hostile(tmp_path, {target: CASES[target][1]})
