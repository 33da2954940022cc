"""The cluster files parse as Ray's launcher reads them and name the versions we pin."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sweeps.cli.app import build_app

ROOT = Path(__file__).parents[4]
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


def test_they_say_the_same():
    """One mount, one set of extras, and an entry point that the command line accepts."""
    for name in LAUNCHER:
        text = (ROOT / name).read_text()
        assert "/mnt/sweep" in text
        assert '-e ".[sweep,s3,kernels]"' in text
        assert "~/venv" in text
        # torch's CUDA build requires a Triton of its own, beside which the pinned one cannot be had
        assert "grep -v ^triton= constraints.txt" in text
        assert " -c constraints.txt" not in text
        assert "-ge 580" in text  # the driver that the pinned torch needs
        config = yaml.safe_load(text)
        assert config["rsync_filter"] == [".gitignore", ".rayignore"]
        assert "rsync_exclude" not in config  # would hold back the launcher's own key
    job = yaml.safe_load((ROOT / "cluster/kuberay.yaml").read_text())["spec"]
    program, verb, spec, *options = shlex.split(job["entrypoint"])
    assert (program, verb) == ("parcae", "run")
    assert (ROOT / "sweeps/specs" / Path(spec).name).is_file()
    given = dict(zip(options[::2], options[1::2], strict=True))
    known = CliRunner().invoke(build_app(), ["run", "--help"], env={"COLUMNS": "200"}).output
    assert all(option in known for option in given)
    cluster = job["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        [container] = group["template"]["spec"]["containers"]
        [mount] = container["volumeMounts"]
        assert given["--out"].startswith(mount["mountPath"])
        assert spec.startswith(mount["mountPath"])
        assert container["image"].endswith(f"ray-{pinned('ray')}")
    limits = container["resources"]["limits"]  # of the workers: what the autoscaler may add
    assert given["--node-cpus"] == limits["cpu"]
    assert given["--node-gpus"] == limits["nvidia.com/gpu"]
    # Room for Kubernetes' own part on a node of 8 CPU and 32 GiB: more than is left never starts
    assert int(limits["cpu"]) <= 7
    assert int(limits["memory"].removesuffix("Gi")) <= 28
    tolerated = {t["key"] for t in workers["template"]["spec"]["tolerations"]}
    assert tolerated == {"nvidia.com/gpu", *workers["template"]["spec"]["nodeSelector"]}


def test_the_manual_names_options_and_files_that_exist():
    text = (ROOT / "docs/cluster.md").read_text()
    for path in re.findall(r"`((?:cluster|sweeps)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    shown = ""
    for verb in ("plan", "run", "submit", "logs", "status"):
        shown += CliRunner().invoke(build_app(), [verb, "--help"], env={"COLUMNS": "200"}).output
    for option in re.findall(r"(?<=[ `])--[a-z][a-z-]+", text):
        assert option in shown or option in ("--head", "--tokenizer"), (
            option
        )  # Ray's own; of `data`
