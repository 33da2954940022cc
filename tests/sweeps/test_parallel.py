import math
import os

import pytest

from analysis.errors import InputError
from analysis.table import load
from parcae_core.errors import UserError
from sweeps import parallel


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 2)


def process_of(_):
    return os.getpid()


def test_answers_come_in_the_order_of_the_inputs_from_processes_of_their_own():
    assert parallel.each(math.sqrt, (4, 9)) == [2, 3]
    assert os.getpid() not in parallel.each(process_of, "ab")
    assert parallel.each(process_of, ["-", "a"]) == [os.getpid()] * 2  # a process has no stdin


def test_what_work_raises_is_raised_and_a_lost_process_is_said():
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        parallel.each(load.load, ("nowhere", "nowhere"))
    with pytest.raises(
        UserError, match=r"9: the process .* was ended by the system \(exit code 9\)"
    ):
        parallel.each(os._exit, (9, 9))
