"""Runs targets in a process of little memory: `python -m tests.fuzz.child FOLDER TARGET=N ...`.

A case is a command line on a damaged file. It may end with 0, 1 or 2 and one message a line; it may
not raise, run what a file asks for, take ten seconds of CPU time or two gigabytes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import resource
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

MEMORY_BYTES = 2 << 30
CPU_S = 10.0
HUNG_S = 300.0  # of the clock: the machine may be busy with something else


def run(target: Target, n_cases: int, folder: Path) -> None:
    folder.mkdir()
    os.environ["CANARY"] = str(folder / "canary")
    prepared = target.prepare(folder)

    @settings(
        max_examples=n_cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def case(data: st.DataObject) -> None:
        arguments = target.case(data.draw, prepared, folder)
        faulthandler.dump_traceback_later(HUNG_S, exit=True)
        began = time.process_time()
        code, out, err = call(arguments)
        faulthandler.cancel_dump_traceback_later()
        took = time.process_time() - began
        assert code in (0, 1, 2), (code, err)
        assert "Traceback" not in err, err
        assert code != 2 or "parcae: " in err or "Usage: " in err, err
        assert len(err) < 20_000, len(err)
        assert took < CPU_S, f"{took:.1f} s of CPU time: {err}"
        assert not (folder / "canary").exists(), "a file was executed"
        assert code or not target.wrong(out), out

    case()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{folder.name}: {n_cases} cases, peak so far {peak:.2f} GiB", flush=True)


def call(arguments: list[str]) -> tuple[int | None, str, str]:
    """The command line in this process: (exit code, stdout, stderr)."""
    from sweeps.cli.app import main

    sys.argv = ["parcae", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code: int | None = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    place, *wanted = sys.argv[1:]
    for name, n in (w.split("=") for w in wanted):
        run(TARGETS[name], int(n), Path(place) / name)
