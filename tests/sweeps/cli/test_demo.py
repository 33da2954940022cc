"""What the demonstration says at its end, from the bundled records of the sweep it is a seed of."""

from pathlib import Path

from analysis.report.study import Study
from analysis.table import load
from sweeps.cli.demo import told


def study_of(source, *where):
    table = load.load(source, where=where)
    return Study(table, ("recurrence",))


def test_the_end_of_the_demonstration_is_a_law_and_what_it_is_a_law_of():
    here = study_of("bundled:state-reveals", "seed<2", "budget_flops<5e11")
    lines = told(study_of("bundled:parcae-140m"), here, Path("runs/demo"))
    text = "\n".join(lines)
    assert "floor, known in closed form: 0.9675" in text
    assert "fixed depth wins at 5 of 5 budgets" in text
    [top] = [line for line in lines if line.strip().startswith("4e+11 FLOPs")]
    assert "at mu = 24: +0.0215 gained, 58% of the way to the floor" in top
    assert here.recurrence.result.valid
