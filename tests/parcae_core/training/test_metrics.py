"""The log holds each step once, in lines that are JSON, whatever happened before."""

import json
import math
import os
import subprocess
import sys

import pytest

from parcae_core.errors import UserError
from parcae_core.training.metrics import Meter, MetricsLog, read_metrics


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_and_a_cut_one_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {s}}}\n' for s in (1, 2, 3, 4)) + '{"step": 5, "los')
    log = MetricsLog(path, keep_until=3)
    assert steps(path) == [1, 2, 3]
    log.write({"step": 4})
    assert steps(path) == [1, 2, 3, 4]  # at once, not when the file is closed
    log.close()


def test_a_run_that_starts_over_starts_its_log_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path, keep_until=0).close()
    assert path.read_text() == ""


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_until=0)
    log.write({"step": 1, "a": math.inf, "b": math.nan, "c": 0.1})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": None, "c": 0.1}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written .*No such file"):
        MetricsLog(tmp_path / "gone" / "metrics.jsonl", keep_until=0)


def test_rates_are_of_the_interval_since_the_last_reading(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("parcae_core.training.metrics.time.perf_counter", lambda: now[0])
    meter = Meter()
    meter.add(tokens=10, flops=6.0, wait_s=0.5)
    meter.add(tokens=10, flops=6.0, wait_s=0.5)
    now[0] += 4
    assert meter.read(peak_flops_per_s=30.0) == {
        "perf/tokens_per_s": 5.0,
        "perf/flops_per_s": 3.0,
        "perf/data_wait_share": 0.25,
        "perf/mfu": 0.1,
    }
    meter.add(tokens=8, flops=2.0, wait_s=0.0)
    now[0] += 2
    assert meter.read(None) == {
        "perf/tokens_per_s": 4.0,
        "perf/flops_per_s": 1.0,
        "perf/data_wait_share": 0.0,
    }


def test_results_and_interruptions_are_read_without_torch():
    """The store checks results and plans sweeps without paying for torch."""
    code = (
        "import parcae_core.result, tests.support.interrupt, sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\x00",
        b"7",
        b"[1, 2]",
        b'{"step": "x"}',
        b'{"step": 9, "train/loss": "x"}',
        b"null",
        b"[" * 200_000,
    ],
)
def test_what_is_no_line_is_cut_with_a_note(tmp_path, garbage):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": s}).encode() for s in (1, 2, 3)]
    path.write_bytes(b"\n".join([*whole[:2], garbage, whole[2], b'{"step": 4, "tr']))
    log = MetricsLog(path, keep_until=3, every=1)
    log.close()
    assert log.notes == (f"{path}: 1 lines were no metrics and are cut",)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    assert path.read_bytes() == b"".join(line + b"\n" for line in whole)


def test_a_hole_before_the_checkpoint_is_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (10, 20)))
    for keep_until, said in ((20, False), (29, False), (40, True)):
        log = MetricsLog(path, keep_until=keep_until, every=10)
        log.close()
        assert bool(log.notes) == said
    assert "nothing is known of the steps from 21 to 40" in log.notes[0]


def test_lines_are_on_the_disk_once_synced(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (flushed.append(os.fstat(f).st_size), real(f)))
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_until=0)
    log.write({"step": 1})
    log.sync()
    log.close()
    assert flushed[-1] == len('{"step": 1}\n')
