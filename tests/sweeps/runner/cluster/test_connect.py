"""What a driver sets for Ray, passes on, and leaves as the user had it."""

import os

import pytest

from sweeps.runner.cluster.connect import AWS_KEYS, _environment, must_send_aws_keys


def test_the_users_variables_stay_and_the_difference_is_said(monkeypatch, capsys):
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "8")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.delenv("RAY_AIR_NEW_OUTPUT", raising=False)
    defaults = {"TUNE_MAX_PENDING_TRIALS_PG": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    with _environment(defaults, {"RAY_AUTH_MODE": "token"}, ["RAY_ADDRESS"]):
        assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "8"
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"
        assert os.environ["RAY_AUTH_MODE"] == "token"  # what keeps a private cluster private
        assert "RAY_ADDRESS" not in os.environ
    assert "TUNE_MAX_PENDING_TRIALS_PG=8 of this environment is kept" in capsys.readouterr().err
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"
    assert "RAY_AIR_NEW_OUTPUT" not in os.environ


@pytest.mark.parametrize(
    ("place", "keys", "profile", "sent"),
    [
        ("s3://bucket/runs", True, False, True),
        ("s3://bucket/runs", True, True, False),  # a profile serves: as the nodes' will
        ("s3://bucket/runs", False, False, False),
        ("/mnt/sweep/runs", True, False, False),
    ],
)
def test_aws_keys_travel_only_where_nothing_else_serves(
    tmp_path, monkeypatch, capsys, place, keys, profile, sent
):
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    credentials = tmp_path / "credentials"
    if profile:
        credentials.write_text("[default]\naws_access_key_id=a\naws_secret_access_key=b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    if keys:
        for name in AWS_KEYS[:2]:
            monkeypatch.setenv(name, "x")
    assert must_send_aws_keys(place) is sent
    assert ("Ray logs them on every node" in capsys.readouterr().err) is sent
