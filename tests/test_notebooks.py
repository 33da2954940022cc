"""Notebooks run top to bottom on what is bundled, are short and carry no outputs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# what a reader must find in the output
SHOWS = {
    "recurrence_law": ("gamma_mu", "0.39"),
    "test_time_law": ("curves follow L(T) = L_inf + Z exp(-z T)", "T = "),
    "unified_law": ("gamma = 1", "val_loss = "),
}
NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    return [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind
    ]


def test_there_are_the_three_notebooks():
    assert [p.stem for p in NOTEBOOKS] == sorted(SHOWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_is_stored_without_outputs(path, tmp_path):
    code = cells(path, "code")
    assert len(code) + len(cells(path, "markdown")) <= 15
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    # plain Python, cell by cell: no kernel to install, and a cell's last expression is evaluated too
    script = "\n\n".join("".join(c["source"]) for c in code)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in SHOWS[path.stem]), done.stdout
