"""`parcae cluster check` against a real cluster of two raylets."""

import json
import os
import subprocess
import sys

import pytest

from sweeps.runner.cluster.check import Node, problems
from tests.e2e.test_kills import ROOT

CLUSTER = """
import os, sys
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1, num_gpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


def check(address: str, *options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sweeps.cli", "cluster", "check", "--address", address]
    return subprocess.run(
        [*command, *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_nodes_answer_and_the_missing_gpu_is_said(cluster, tmp_path):
    done = check(cluster, "--out", tmp_path / "runs", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert len(report["nodes"]) == 2
    for node in report["nodes"]:
        assert node["problem"] is None
        assert node["storage"] == "ok"
        assert node["versions"]["python"] == sys.version.split()[0]
        assert node["versions"]["torch"].startswith("2.")
        assert len(node["versions"]["code"]) == 8
    [problem] = report["problems"]  # the one node offers a GPU that is not there
    assert "offers 1 GPU and nvidia-smi finds none" in problem
    assert report["seconds"] < 60
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_said_in_80_columns(cluster, tmp_path):
    (tmp_path / "file").touch()
    done = check(cluster, "--out", tmp_path / "file" / "runs")
    assert done.returncode == 1, done.stderr
    assert "cannot write in --out: NotADirectoryError" in done.stdout
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["node", "CPU", "Python", "Ray", "torch", "code", "GPU", "storage"]
    assert all(len(line) <= 80 for line in (head, *rows[:2]))
    assert "Traceback" not in done.stderr


def test_what_differs_is_a_sentence():
    same = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "code": "aa"}
    nodes = [Node(name=f"n{i}", cpus=8, gpus=1, versions=dict(same)) for i in range(3)]
    for node in nodes:
        node.devices, node.torch_gpus, node.storage = ["NVIDIA L4, 580.1, 24 GiB"], 1, "ok"
    assert problems(nodes) == []
    nodes[1].versions["code"] = "bb"
    nodes[2].versions["torch"] = "2.13.0+cpu"
    nodes[2].torch_gpus = 0
    nodes[0].storage = "does not see in --out what was written by n1 (FileNotFoundError)"
    said = problems(nodes)
    assert "torch differs: 2.13.0 on n0, n1; 2.13.0+cpu on n2. Install the same" in said[0]
    assert "code differs: aa on n0, n2; bb on n1" in said[1]
    assert said[2].startswith("n0: does not see in --out what was written by n1")
    assert "n2: offers 1 GPU and torch sees 0; torch's CUDA build needs a newer driver" in said[3]
    nodes[0].problem = "no answer in 40 s"
    assert problems(nodes)[0] == "n0: no answer in 40 s"
