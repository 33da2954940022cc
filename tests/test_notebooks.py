"""Notebooks run top to bottom on what is bundled, are short, and are stored with what they show."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# what a reader must find in the output
SHOWS = {
    "recurrence_law": ("gamma_mu", "0.39", "interior", "of the way to the floor"),
    "test_time_law": ("curves follow L(T) = L_inf + Z exp(-z T)", "T = "),
    "unified_law": ("gamma = 1", "val_loss = "),
}
QUICK = "recurrence_law"  # the others fit hundreds of curves
FIGURES = {"recurrence_law": 4, "test_time_law": 2, "unified_law": 1}
FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [c for c in notebook["cells"] if c["cell_type"] == kind]


def printed(path):
    outputs = [o for c in cells(path, "code") for o in c["outputs"]]
    return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")


def test_there_are_the_three_notebooks():
    assert [p.stem for p in NOTEBOOKS] == sorted(SHOWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_short_and_stored_with_its_figures(path):
    code = cells(path, "code")
    assert len(code) + len(cells(path, "markdown")) <= 15
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    assert all(text in printed(path) for text in SHOWS[path.stem])
    pictures = [o for c in code for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) == FIGURES[path.stem]
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=() if p.stem == QUICK else pytest.mark.slow)
        for p in NOTEBOOKS
    ],
)
def test_a_notebook_runs_and_shows_it_again(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    command = [sys.executable, "-W", "error", str(FOLDER / "execute.py"), str(copy)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(text in printed(Path(copy)) for text in SHOWS[path.stem])
