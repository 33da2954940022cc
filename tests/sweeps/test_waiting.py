"""Work that takes long says so on stderr, and what it prints on stdout stays as it is."""

import os
import pty
import subprocess
import sys

CODE = """
import sys, time
from sweeps import waiting
waiting.AFTER_S, waiting.EVERY_S = 0.1, 0.3
with waiting.waiting("parcae judge"):
    time.sleep({before}); print("the answer", flush=True); time.sleep(0.5)
"""


def ran(before: float, stderr: int) -> str:
    code = CODE.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    assert done.returncode == 0
    return done.stdout


def test_a_terminal_shows_what_is_at_work_and_a_pipe_gets_the_answer_alone():
    ours, theirs = pty.openpty()
    assert ran(0.6, theirs) == "the answer\n"
    os.close(theirs)
    assert "parcae judge" in os.read(ours, 65536).decode()
    os.close(ours)


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path):
    with (tmp_path / "err").open("w+") as file:
        assert ran(0.5, file.fileno()) == "the answer\n"
        file.seek(0)
        lines = file.read().splitlines()
    assert lines
    assert all(line.startswith("parcae judge: ") for line in lines)
