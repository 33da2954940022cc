"""The verbs: what they print, that they repeat, and their messages."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from parcae_core.data.state_reveals import StateReveals
from parcae_core.errors import UserError
from sweeps.cli.data import data


@pytest.fixture
def run():
    app = typer.Typer()
    app.callback()(lambda: None)
    app.add_typer(data, name="data")

    def call(*arguments):
        result = CliRunner().invoke(app, ["data", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"Naïve document {i}. " + "It goes on a little. " * 5)
    return folder


def test_prepare_prints_a_folder_that_inspect_reads(run, corpus, tmp_path):
    made = run("prepare", corpus, "--out", tmp_path, "--context", 32)
    assert made.exit_code == 0
    path = made.stdout.splitlines()[0]
    assert "0.0" not in path
    assert "cropped" in made.stdout
    again = run("prepare", corpus, "--out", tmp_path, "--context", 32)
    assert again.stdout == made.stdout
    shown = run("inspect", path, "--rows", 2, "--split", "val", "--verify").stdout
    assert shown.startswith(made.stdout)
    assert shown.count("val row") == 2
    assert "<|bos|>" in shown
    assert "It goes on" in shown


@pytest.mark.parametrize(
    "changes", [{"floor": "low"}, {"loss_by_reach": {"x": 1.0}}, {"corpus": None}, {"more": 1}]
)
def test_what_is_known_of_a_generated_text_is_checked(run, changes, tmp_path):
    path = Path(run("prepare", "state-reveals", "--out", tmp_path).stdout.splitlines()[0])
    assert "floor      " in run("inspect", path).stdout
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["generated"] |= changes
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged manifest"):
        run("inspect", path)


def test_json_is_all_of_stdout(run, corpus, tmp_path):
    made = json.loads(
        run("prepare", corpus, "--out", tmp_path, "--tokenizer", "bpe-270", "--json").stdout
    )
    assert made["manifest"]["tokenizer"]["name"] == "bpe-270"
    shown = json.loads(run("inspect", made["path"], "--rows", 1, "--json").stdout)
    assert shown["manifest"] == made["manifest"]
    assert len(shown["sample"]["rows"]) == 1


def test_mistakes_are_user_errors(run, corpus, tmp_path):
    with pytest.raises(UserError, match="--long-documents is 'chop'"):
        run("prepare", corpus, "--out", tmp_path, "--long-documents", "chop")
    with pytest.raises(UserError, match="val_share is 2"):
        run("prepare", corpus, "--out", tmp_path, "--val-share", 2)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        run("inspect", tmp_path)
    assert not list(tmp_path.iterdir())
    assert run("prepare", corpus, "--context", 0).exit_code == 2


def test_damage_is_found_by_verify(run, corpus, tmp_path):
    path = run("prepare", corpus, "--out", tmp_path).stdout.splitlines()[0]
    with open(f"{path}/val.bin", "r+b") as file:
        file.write(b"\x01\x00")
    run("inspect", path)
    with pytest.raises(UserError, match=r"val\.bin: its content does not match"):
        run("inspect", path, "--verify")


def test_a_generated_corpus_shows_its_floor_and_its_rows(run, tmp_path):
    corpus = "state-reveals(states=4, actions=2)"
    out = run("prepare", corpus, "--context", 16, "--out", tmp_path).stdout
    assert "rows without end" in out
    assert f"floor      {StateReveals(states=4, actions=2).loss(16):.4f} nats per token" in out
    shown = run("inspect", out.splitlines()[0], "--rows", 1).stdout.splitlines()[-1]
    assert re.fullmatch(r"<\|bos\|>[A-D][ab][A-Dab]{14}", shown)
