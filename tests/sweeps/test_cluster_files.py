"""The cluster files parse as Ray's launcher reads them and name the versions we pin."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCHER = ["cluster.yaml", "cluster/onprem.yaml"]
EVERY = [*LAUNCHER, "cluster/kuberay.yaml"]


def pinned(package: str) -> str:
    text = (ROOT / "constraints.txt").read_text()
    return re.search(rf"^{package}==(\S+)$", text, flags=re.M)[1]


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_accepts_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / name).read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match=r"max_worker\b"):  # or the check checks nothing
        validate_config(prepare_config(config | {"max_worker": 3}))


@pytest.mark.parametrize("name", EVERY)
def test_it_names_the_pinned_versions_and_no_other(name):
    text = (ROOT / name).read_text()
    named = re.findall(
        r'(ray|wandb)(?:\[[\w,]+\])?[=-]=?(\d+\.\d+\.\d+)|rayVersion: "([\d.]+)"', text
    )
    assert named
    for package, version, ray_version in named:
        assert (version or ray_version) == pinned(package or "ray")


@pytest.mark.parametrize("name", EVERY)
def test_it_holds_no_secret_and_no_home(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA|aws_secret|api_key|password|BEGIN [A-Z ]*KEY|/root/|/Users/", text)
    assert not re.search(r"token\s*[:=]\s*\S{16,}", text)


def test_trials_stay_off_the_head_and_the_dashboard_at_home():
    for name in LAUNCHER:
        assert "dashboard-host=127.0.0.1" in (ROOT / name).read_text()
    head = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0}
