"""`parcae init` and `parcae spec`, `--set`, and a sweep's name in place of its spec."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from parcae_core.errors import UserError
from sweeps.cli.sweep import load_plan, named
from sweeps.cli.write import shipped
from sweeps.design import fields
from sweeps.design.spec import DESIGNS, load_spec
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec
from tests.sweeps.cli.test_cli import in_process
from tests.sweeps.test_store import good_result, put


@pytest.mark.parametrize("source", shipped())
def test_init_writes_a_spec_that_means_its_source_under_its_own_name(
    source, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, "init", "mine", "--from", source)
    assert (code, out) == (0, "mine.yaml\n")
    assert "parcae plan mine.yaml" in err
    text = (tmp_path / "mine.yaml").read_text()
    assert f"sweeps/specs/{source}.yaml" not in text
    assert text.count("#") >= 2  # commented
    assert load_spec("mine.yaml").name == "mine"
    code, _, err = in_process(monkeypatch, capsys, "init", "mine")
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Mine"], "it must be a folder name"),
        (["mine", "--from", "demoo"], "did you mean 'demo'?"),
        (["mine", "--in", "nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_begun_is_one_sentence_and_nothing_is_written(
    arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, "init", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["text", "markdown", "json-schema"])
def test_every_field_is_printed_with_type_default_and_meaning(form, monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, "spec", "--format", form)
    assert code == 0
    for model in DESIGNS.values():
        assert all(name in out for name in model.model_fields)
    for _, known in fields.sections().values():
        for field in known:
            assert field.kind
            assert field.default
            assert field.meaning


def test_defaults_are_those_of_the_code():
    known = {f.name: f for f in fields.sections("isoflop")["optim"][1]}
    assert (known["muon_lr"].kind, known["muon_lr"].default) == ("number", "0.008")
    assert "both optimisers" in known["lr"].meaning
    top = {f.name: f for f in fields.sections("isoflop")["design: isoflop"][1]}
    assert (top["min_steps"].kind, top["min_steps"].default) == ("whole number", "100")
    assert top["budgets_flops"].default == "required"


def test_the_schema_takes_a_spec_and_refuses_another(tmp_path):
    schema = fields.schema("isoflop")
    spec = load_spec(write_spec(tmp_path)).model_dump(mode="json", exclude_unset=True)
    jsonschema.validate(spec, schema)
    changed = spec | {"data": {"corpus": {"name": "state-reveals"}}, "optim": {"lr": 0.01}}
    jsonschema.validate(changed, schema)
    for bad in ({"budget_flops": 3}, {"min_steps": "many"}, {"data": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spec | bad, schema)


def test_set_changes_a_key_and_the_sweep_keeps_what_was_run(tmp_path):
    path = write_spec(tmp_path)
    changes = ("optim.lr=1e-2", "name=faster", "mean_recurrence=[2]")
    planned = load_plan(path, changes)
    assert planned.name == "faster"
    assert {(t.optim.muon_lr, t.mean_recurrence) for t in planned.trials} == {(0.01, 2)}
    store = Store(tmp_path / "runs", planned.name)
    store.write_plan(planned, path)
    kept = store.root / "spec.yaml"
    assert kept.read_text().startswith(f"# {path} --set optim.lr=1e-2")
    assert load_plan(kept).trial_ids == planned.trial_ids


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optim.lr", "give key=value, such as optim.lr=1e-2"),
        ("name.first=x", "name is 'tiny', which has no keys to set"),
        ("optim.rate=1", "unknown key 'rate' in optim"),
        ("min_steps=many", "min_steps is 'many'"),
        ("seeds=[1", "not readable as YAML"),
    ],
)
def test_a_change_that_cannot_be_made_is_one_sentence(change, said, tmp_path, monkeypatch, capsys):
    path = write_spec(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, "plan", path, "--set", change)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_sweep_is_named_where_a_spec_is_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    planned, path = tiny_plan(), write_spec(tmp_path)
    store = Store(tmp_path / "runs", planned.name)
    store.write_plan(planned, path)
    path.unlink()
    assert named(store.root).spec == store.root / "spec.yaml"
    code, out, _ = in_process(monkeypatch, capsys, "plan", "tiny", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "tiny"
    with pytest.raises(UserError, match="or the name of a sweep"):
        load_plan(named(path.with_name("none")).spec)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("plan ti", ["tiny.yaml", "tiny"]),
        ("status ti", ["tiny"]),
        ("init x --from sta", ["state-reveals"]),
    ],
)
def test_the_shell_completes_verbs_specs_and_sweeps(words, completed, tmp_path, monkeypatch):
    planned, path = tiny_plan(), write_spec(tmp_path)
    Store(tmp_path / "runs", planned.name).write_plan(planned, path)
    asked = {
        "_PARCAE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"parcae {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    program = "import sys; sys.argv = ['parcae']; from sweeps.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | asked,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == completed, done.stderr


def test_a_folder_means_that_folder_and_no_other_of_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_spec(tmp_path)
    planned = load_plan(path)
    (tmp_path / "here").mkdir()
    store = Store(tmp_path / "there", planned.name)
    store.write_plan(planned, path)
    for trial in planned.trials:
        put(store, trial, good_result(trial))
    shutil.copytree(store.root, tmp_path / "there" / "copy")
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("../there/tiny", "../there/copy", str(store.root)):
        code, out, _ = in_process(monkeypatch, capsys, "plan", folder, "--json")
        assert code == 0
        assert {t["state"] for t in json.loads(out)["trials"]} == {"done"}
        assert named(Path(folder)).store(planned).root.resolve() == Path(folder).resolve()
    assert named(Path("../there/copy")).store(tiny_plan(name="other")).where.endswith("there/other")
    code, _, err = in_process(monkeypatch, capsys, "plan", "../there/tiny", "--out", "elsewhere")
    assert code == 2
    assert "leave --out away" in err
    kept = tmp_path / "there" / "copy" / "spec.yaml"
    kept.unlink()
    kept.mkdir()
    code, _, err = in_process(monkeypatch, capsys, "run", "../there/copy")
    assert code == 2
    assert "../there/copy/spec.yaml is a folder" in err
