"""The tutorials' commands run as they are printed, one after the other, in a folder of their own."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from sweeps.cli import app

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)


def run(line: str, monkeypatch) -> None:
    command, _, comment = line.partition("  # exit code ")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == int(comment or 0), line


@pytest.mark.slow
@pytest.mark.parametrize("page", ["logs", "gpus", "show-me"])
def test_the_commands_of_a_tutorial_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorials" / f"{page}.md").read_text()
    n_commands = 0
    for kind, title, body in _BLOCK.findall(text):
        if title:
            Path(title).write_text(body)
        if kind == "console":
            for line in body.splitlines():
                n_commands += 1
                run(line.removeprefix("$ "), monkeypatch)
    assert n_commands >= 4
    assert capsys.readouterr().out


def test_the_pages_made_from_the_code_hold_every_verb_and_field():
    hooks = pytest.importorskip("mkdocs") and _hooks()
    text = hooks.commands()
    for verb in ("plan", "run", "fit", "data prepare", "cluster check", "init"):
        assert f"`parcae {verb}`" in text
    assert "    parcae plan my.yaml --set optim.lr=1e-2 --trials" in text


def _hooks():
    import importlib.util

    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
