"""`design: adaptive` on a real private cluster whose driver is killed on the way."""

import time

import pytest

from sweeps.cli.tables.status import status_data
from sweeps.decisions import decisions
from sweeps.store import Store
from tests.e2e.test_kills import finish, start
from tests.support.tiny import write_spec

pytestmark = pytest.mark.slow
TOTAL = 6e9


def test_a_killed_sweep_goes_on_with_what_it_had_decided(tmp_path):
    spec = write_spec(
        tmp_path,
        design="adaptive",
        budgets_flops=[4e8, 8e8, 1.6e9],
        mean_recurrence=[2, 4, 8],
        seeds=[0, 1],
        total_flops=TOTAL,
        prior="E=1,X=300,x=0.5,Y=60,y=0.5",
        noise=0.01,
        min_steps=2,
        evaluation={"loops": [1], "n_sequences": 4},
    )
    out = tmp_path / "runs"
    process = start(spec, out)
    deadline = time.monotonic() + 200
    while len(decisions(out / "tiny")) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no decisions in time"
        time.sleep(0.1)
    process.kill()
    process.communicate()
    before = decisions(out / "tiny")
    finish(start(spec, out))
    after = decisions(out / "tiny")
    assert after[: len(before)] == before
    assert after[-1]["stop"] == "the FLOPs are spent"
    names = [line["trial_id"] for line in after[:-1]]
    assert len(set(names)) == len(names)
    assert TOTAL - 4e8 < sum(line["budget_flops"] for line in after[:-1]) <= TOTAL
    data = status_data(Store(out, "tiny"))
    assert {t["trial_id"] for t in data["trials"]} == set(names)
    assert data["counts"] == {"done": len(names)}
    assert data["design"] == after
