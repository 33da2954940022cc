"""What the demonstration says at its end, from the bundled records of the sweep it is a seed of."""

from analysis.report.study import Study
from analysis.table import load
from sweeps.cli.demo import tell


def study_of(source, *where):
    return Study(load.load(source, where=where), ("recurrence",))


def test_the_end_of_the_demonstration_is_a_law_and_what_it_is_a_law_of(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, nothing bold
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    here = study_of("bundled:state-reveals", "seed<2", "budget_flops<5e11")
    tell(study_of("bundled:parcae-140m"), here)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "nats per token; known floor 0.9675" in text
    assert "fixed depth wins at 5 of 5 budgets" in text
    assert "4e11 1.0046 0.9831 24 +0.0215 58%" in text
    assert "paper's figure, 140M parameters 0.396 [0.364, 0.427] 0.783 [0.688, 0.878]" in text
    assert here.recurrence.result.valid
