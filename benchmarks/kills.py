"""Kills during sweeps on a Ray cluster of two nodes: when the sweep goes on, what it says, and whether
its records are those of an undisturbed one.

    python -m benchmarks.kills --kills 20
    python -m benchmarks.kills --kinds gcs --kills 1

worker      the process of a trial at work
driver      `parcae run`; the same command is given again at once
raylet      of the node of a trial at work; the trial's worker lives on
node        the raylet and all processes below it
gcs         of the head: the cluster is lost; a new one is started and the command given again

Each kill waits for a checkpoint that is newer than at the trial's last one. Rows go to
benchmarks/results/kills.csv; `seconds` is until another attempt has made a step beyond the one at
the kill, and for gcs until the driver has ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, append_rows, provenance
from parcae_core.training.metrics import read_metrics
from parcae_core.trial import Trial
from sweeps.child import children
from sweeps.records import records_of
from sweeps.reports import FINISHED
from sweeps.store import Store

KINDS = ("worker", "driver", "raylet", "node", "gcs")
NAME = "kills"
N_NODES = 2  # beside the head, which holds no trials
KILLS_A_SWEEP = 5
HANG_S = 120.0  # is given up; the bar is 60
# Alike in every run of the same trials; times and the number of restarts are not
COMPARED = ["trial_id", "n_loops", "val_loss", "val_bpb", "status", "n_tokens", "train_flops_exact"]
SPEC = """
name: kills
design: test_time
preset: nano
model: {{d_model: 16, d_ff: 32, value_gate_width: 4, context: 16}}
n_tokens: {n_tokens}
mean_recurrence: [2, 3]
batch_sequences: 4
data: {{corpus: text}}
evaluation: {{loops: [1, 2, 3], n_sequences: 4}}
wandb: {{mode: disabled}}
"""


@dataclass
class Cluster:
    """Ray's processes on this machine, every port on loopback."""

    cluster: Any = None

    def start(self) -> None:
        """A head and its nodes."""
        from ray.cluster_utils import Cluster as RayCluster

        # a port of its own, so that several clusters may be on this machine
        head = {"num_cpus": 0, "include_dashboard": False, "dashboard_agent_listen_port": 0}
        self.cluster = RayCluster(initialize_head=True, head_node_args=head)
        for _ in range(N_NODES):
            self.add_node()

    def add_node(self) -> None:
        self.cluster.add_node(num_cpus=1)

    def gcs(self) -> int:
        return self.cluster.head_node.all_processes["gcs_server"][0].process.pid

    def shutdown(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()


@dataclass
class Sweep:
    """A sweep through `parcae run`, started again whenever its driver has ended before it has."""

    spec: Path
    out: Path
    cluster: Cluster
    process: subprocess.Popen | None = None
    n_starts: int = 0

    @property
    def store(self) -> Store:
        return Store(self.out, NAME)

    def run(self) -> None:
        self.n_starts += 1
        self.file = (self.out.parent / f"{self.out.name}-{self.n_starts}.log").open("w+")
        command = [
            *(sys.executable, "-m", "sweeps.cli", "run", str(self.spec), "--out", str(self.out)),
            *("--address", self.cluster.cluster.address, "--checkpoint-every", "1"),
        ]
        self.process = subprocess.Popen(command, stdout=self.file, stderr=subprocess.STDOUT)

    def said(self) -> list[str]:
        """Lines of the driver at work, or of the last."""
        return Path(self.file.name).read_text().splitlines()

    def finished(self) -> bool:
        trials = self.store.stored_trials()
        return bool(trials) and all(self.store.state(t).state in FINISHED for t in trials)

    def failed(self) -> list[str]:
        """Why trials failed. None may: each kill is the system's doing."""
        states = [self.store.state(trial) for trial in self.store.stored_trials()]
        return [f"{s.reason}" for s in states if s.state == "failed"]

    def target(self, killed: dict[str, int]) -> Trial | None:
        """A trial at work with a checkpoint newer than at its last kill."""
        for trial in self.store.stored_trials():
            newest = self.store.files(trial.trial_id).newest_step()
            state = self.store.state(trial).state
            if state == "running" and killed.get(trial.trial_id, 0) < newest < 0.9 * trial.n_steps:
                killed[trial.trial_id] = newest
                return trial
        return None

    def goes_on(self, trial: Trial, attempts: int, step: int) -> bool:
        """Whether a later attempt is further than `step`, or the trial has ended."""
        if self.store.result(trial) is not None:
            return True
        report = self.store.report(trial.trial_id)
        return report is not None and report.attempts > attempts and self.step(trial) > step

    def step(self, trial: Trial) -> int:
        """The last that the trial is known to have made."""
        lines = read_metrics(self.store.files(trial.trial_id).metrics)
        return lines[-1]["step"] if lines else 0


def sweep_with_kills(sweep: Sweep, kinds: list[str], until: float) -> list[dict[str, Any]]:
    """Run one sweep to its end with a kill of each kind on the way, none after `until`; their rows."""
    rows: list[dict[str, Any]] = []
    killed: dict[str, int] = {}
    try:
        sweep.run()
        while not sweep.finished():
            if failed := sweep.failed():
                raise SystemExit(f"{sweep.out}: a kill made a trial fail: {failed}")
            if sweep.process.poll() is not None:
                sweep.run()
            more = len(rows) < len(kinds) and time.monotonic() < until
            trial = sweep.target(killed) if more else None
            if trial is None:
                time.sleep(0.1)
                continue
            rows.append(one_kill(kinds[len(rows)], sweep, trial))
            print(rows[-1], flush=True)
        sweep.process.wait(timeout=HANG_S)
    finally:
        if sweep.process.poll() is None:
            sweep.process.kill()
    return rows


def one_kill(kind: str, sweep: Sweep, trial: Trial) -> dict[str, Any]:
    cluster = sweep.cluster
    report, step = sweep.store.report(trial.trial_id), sweep.step(trial)
    pid = report.pid
    n_said, began = len(sweep.said()), time.monotonic()
    if kind == "worker":
        end(pid)
    elif kind == "driver":
        end(sweep.process.pid)
        sweep.process.wait()
        n_said = 0
        sweep.run()
    elif kind == "gcs":
        end(cluster.gcs())
    else:
        raylet = parent_of(pid)
        below = children(raylet) if kind == "node" else []
        end(raylet, *below)
        cluster.add_node()
    if kind == "gcs":
        went_on = wait_until(lambda: sweep.process.poll() is not None)
    else:
        went_on = wait_until(lambda: sweep.goes_on(trial, report.attempts, step))
    seconds = time.monotonic() - began
    told = [line for line in sweep.said()[n_said:] if any(word in line for word in REASONS[kind])]
    if kind == "gcs":
        cluster.shutdown()
        cluster.start()
    return {
        "kind": kind,
        "step": step,
        "seconds": round(seconds, 1),
        "went_on": went_on,
        "reason": told[0].split(" mu=")[-1][:200] if told else "",  # without time and trial
    }


# What the line says that gives the reason
REASONS = {
    "worker": ("worker lost",),
    "driver": ("were at work when",),
    "raylet": ("worker lost",),
    "node": ("worker lost",),
    "gcs": ("the Ray cluster is lost",),
}


def end(*pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + HANG_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def write_corpus(folder: Path) -> None:
    """A few files, prepared in a moment."""
    folder.mkdir()
    for i in range(40):
        lines = (f"line {j} of text {i}: {(i * 7919 + j * 104729) % 9973}" for j in range(60))
        (folder / f"{i:02d}.txt").write_text("\n".join(lines))


def undisturbed(spec: Path, out: Path) -> Any:
    """The records of the sweep in plain processes, without Ray and without a kill."""
    command = [sys.executable, "-m", "sweeps.cli", "run", str(spec), "--out", str(out), "--no-ray"]
    subprocess.run(command, check=True, capture_output=True)
    return records_of(Store(out, NAME))[COMPARED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--seconds", type=float, default=1e9, help="no kill is made after them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that clusters are shut down
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    until = time.monotonic() + args.seconds
    left = [kind for _ in range(args.kills) for kind in args.kinds]
    cluster = Cluster()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        spec = Path(folder) / "kills.yaml"
        spec.write_text(SPEC.format(n_tokens=64 * args.steps))
        write_corpus(spec.parent / "text")
        truth = undisturbed(spec, Path(folder) / "alone")
        try:
            cluster.start()
            while left and time.monotonic() < until:
                sweep = Sweep(spec, Path(folder) / f"out-{len(left)}", cluster)
                rows = sweep_with_kills(sweep, left[:KILLS_A_SWEEP], until)
                left = left[len(rows) :]
                about = {
                    "records_equal": records_of(sweep.store)[COMPARED].equals(truth),
                    "driver_starts": sweep.n_starts,
                    "load_1min": round(os.getloadavg()[0], 1),
                    **provenance(),
                }
                if rows:
                    append_rows("kills", [row | about for row in rows], args.results)
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
