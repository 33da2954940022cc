"""Work that takes long says so on stderr, and what it prints on stdout stays as it is."""

import os
import pty
import subprocess
import sys

CODE = """
import time, typer
from rich.console import Console
from sweeps import waiting
waiting.AFTER_S, waiting.EVERY_S = 0.1, 0.3
with waiting.waiting("parcae judge"):
    time.sleep({before}); typer.echo("the answer"); time.sleep(0.5)
    Console().print("[bold]a table[/]" if Console().is_terminal else "no table")
"""


def ran(before: float, stderr: int, stdout: int = subprocess.PIPE) -> str:
    code = [sys.executable, "-c", CODE.format(before=before)]
    done = subprocess.run(code, stdout=stdout, stderr=stderr, text=True, check=False)
    assert done.returncode == 0
    return done.stdout


def test_a_terminal_shows_what_is_at_work_and_a_pipe_gets_the_answer_alone():
    ours, theirs = pty.openpty()
    assert ran(0.6, theirs) == "the answer\nno table\n"
    os.close(theirs)
    assert "parcae judge" in os.read(ours, 65536).decode()
    os.close(ours)


def test_on_one_terminal_the_answer_has_a_line_of_its_own():
    ours, theirs = pty.openpty()
    ran(0.6, theirs, theirs)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    assert "\r\x1b[2Kthe answer\r\n" in shown
    assert "\r\x1b[2K\x1b[1ma table\x1b[0m\r\n" in shown
    os.close(ours)


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path):
    with (tmp_path / "err").open("w+") as file:
        assert ran(0.5, file.fileno()) == "the answer\nno table\n"
        file.seek(0)
        lines = file.read().splitlines()
    assert lines
    assert all(line.startswith("parcae judge: ") for line in lines)
