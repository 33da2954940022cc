"""What a submission sends and what it keeps here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from parcae_core.errors import UserError
from sweeps.runner.cluster.package import EXCLUDES, MIB, SECRETS, package_of, variables
from sweeps.store import COMMIT_VARIABLE, git_commit

ROOT = Path(__file__).parents[4]


def git(*arguments: str, folder: Path = ROOT) -> list[str]:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_every_tracked_file_of_the_checkout_is_sent():
    package = package_of(ROOT)
    assert set(git("ls-files")) <= set(package.files)
    assert sum(f.startswith("parcae_core/data/") for f in package.files) >= 13
    assert package.has_code
    assert not any(f.startswith((".git/", ".venv/", "runs/")) for f in package.files)


def test_secrets_stay_here_and_are_named(tmp_path):
    kept = (".env", ".env.local", ".netrc", ".git-credentials", ".aws/credentials", "deep/.ssh/key")
    kept += ("server.pem", "deep/auth_token", "token", "data/big.bin", "runs/old/result.json")
    sent = (
        "spec.yaml",
        "deep/data/table.csv",
        "tokenizer.json",
        "deep/runs/kept.txt",
        "environment",
    )
    write(tmp_path, *kept, *sent)
    package = package_of(tmp_path)
    assert set(package.files) == set(sent)
    assert set(package.secrets) == {
        *(".env", ".env.local", ".netrc", ".git-credentials", ".aws", "deep/.ssh", "server.pem"),
        *("deep/auth_token", "token"),
    }
    said = package.sentence()
    assert "sends 5 files, 0.0 MiB" in said
    assert "left out: data, runs; kept here as possible secrets: .aws, .env, .env.local" in said
    assert package_of(tmp_path, ["*.csv"]).files == tuple(sorted(set(sent) - {sent[1]}))


def test_secrets_are_known_by_words_and_ends_in_any_case(tmp_path):
    kept = ("token.json", "client_secret.json", "service_account.json", "gcp-key.json", "my.PEM")
    kept += ("AWS_credentials.csv", ".config/gh/hosts.yml", "deep/rclone.conf", ".boto", ".s3cfg")
    kept += (".pgpass", "kubeconfig", "api_key.txt", "wandb_key.txt", ".Renviron", "HF_TOKEN")
    sent = (
        "secrets.py",
        "tokens.json",
        "special_tokens.json",
        "n_tokens.csv",
        "keys.py",
        "key.yaml",
    )
    sent += ("tokenizer.json", "tokenizer_config.json", "token.py")
    write(tmp_path, *kept, *sent)
    assert set(package_of(tmp_path).files) == set(sent)


def test_what_ray_would_refuse_is_refused_here_with_the_largest_files(tmp_path):
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(101 * MIB)
    with pytest.raises(UserError, match=r"101 MiB would be sent, and Ray takes 100 MiB.*weights"):
        package_of(tmp_path).require_sendable()
    package_of(tmp_path, ["*.bin"]).require_sendable()


def test_only_named_variables_travel():
    here = {"WANDB_API_KEY": "k", "WANDB_PROJECT": "p", "HOME": "/home"}
    assert variables([], here) == {}
    assert variables(["WANDB_*", "A=b=c"], here) == {
        "WANDB_API_KEY": "k",
        "WANDB_PROJECT": "p",
        "A": "b=c",
    }
    with pytest.raises(UserError, match="--env NONE: no such variable is set here"):
        variables(["NONE"], here)


def test_the_commit_travels_with_the_code_and_only_with_it(tmp_path, monkeypatch):
    write(tmp_path, "sweeps/store.py", "spec.yaml")
    for command in (["init", "-q"], ["add", "."]):
        git(*command, folder=tmp_path)
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    git(*name, "commit", "-qm", "one", folder=tmp_path)
    [commit] = git("rev-parse", "HEAD", folder=tmp_path)
    assert package_of(tmp_path).commit == {COMMIT_VARIABLE: commit}
    monkeypatch.setenv(COMMIT_VARIABLE, commit)  # as in the job, whose files come without .git
    arrived = tmp_path / "arrived"
    shutil.copytree(tmp_path / "sweeps", arrived / "sweeps")
    assert git_commit(arrived) == commit
    monkeypatch.delenv(COMMIT_VARIABLE)
    assert package_of(tmp_path, ["sweeps"]).commit == {}
    assert git_commit(arrived) is None


def test_the_file_that_rsync_reads_says_the_same():
    """`ray up` copies with rsync, which takes the patterns of every folder's .rayignore.

    Not `rsync_exclude`: those also hold for the single key file that the launcher itself sends.
    """
    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == list(EXCLUDES)
    assert set(SECRETS) < set(EXCLUDES)


def test_rsync_copies_what_git_tracks(tmp_path):
    if shutil.which("rsync") is None:
        pytest.skip("needs rsync")
    checkout, arrived = tmp_path / "checkout", tmp_path / "arrived"
    git("clone", "-q", str(ROOT), str(checkout), folder=tmp_path)
    shutil.copy(ROOT / ".rayignore", checkout)
    write(checkout, ".env", "deep/server.pem", "data/big.bin", "runs/a/result.json")
    key = tmp_path / "ray_bootstrap_key.pem"
    key.write_text("the launcher's own")
    # As ray.autoscaler's command runner calls it, for a folder and for a file
    filters = [f"--filter=dir-merge,- {name}" for name in (".gitignore", ".rayignore")]
    for source, target in ((f"{checkout}/", f"{arrived}/"), (str(key), f"{arrived}/key.pem")):
        subprocess.run(["rsync", "-az", *filters, source, target], check=True)
    files = {str(p.relative_to(arrived)) for p in arrived.rglob("*") if p.is_file()}
    assert files == {*git("ls-files", folder=checkout), ".rayignore", "key.pem"}
    assert os.path.getsize(arrived / "key.pem") == key.stat().st_size
