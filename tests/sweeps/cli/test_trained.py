"""`parcae sample` and `parcae export` on a run's folder, through the command line."""

import json
import resource
import sys

import pytest

from sweeps.cli import app
from tests.support.trained import trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("sweep") / "trial")


@pytest.fixture
def parcae(monkeypatch, capsys):
    def call(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parcae", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stop:
            app.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def test_a_text_has_a_column_for_each_number_of_loops(parcae, run):
    ask = ("sample", run, "The sea", "--loops", "1,4,16", "--tokens", 20, "--seed", 1)
    code, out, err = parcae(*ask, "--json")
    assert code == 0, err
    assert "trained at mean_recurrence 3" in err
    columns = json.loads(out)["columns"]
    assert [c["n_loops"] for c in columns] == [1, 4, 16]
    assert [len(c["changes"]) for c in columns] == [1, 4, 16]
    assert len({c["text"] for c in columns}) == 3
    code, table, _ = parcae(*ask, "--stop-below", 1e-9)
    assert code == 0
    assert all(head in table for head in ("1 loop ", "4 loops", "16 loops"))
    assert max(map(len, table.splitlines())) <= 80
    assert "\x1b" not in table
    assert "16 loops: 16.0 used per token; stopping below 1e-09 saved 0%" in table


def test_loops_follow_the_training_when_none_are_named(parcae, run):
    code, out, _ = parcae("sample", run, "The sea", "--tokens", 3, "--json")
    assert code == 0
    assert [c["n_loops"] for c in json.loads(out)["columns"]] == [1, 3, 6]


def test_a_checkpoint_is_read_like_its_run_and_a_reused_result_like_its_source(
    parcae, run, tmp_path
):
    ask = ("The sea", "--tokens", 3, "--json")
    _, want, _ = parcae("sample", run, *ask)
    checkpoint = next((run / "checkpoints").iterdir())
    assert parcae("sample", checkpoint, *ask)[1] == want
    other = run.parents[1] / "other" / run.name
    other.mkdir(parents=True)
    (other / "state.json").write_text(
        json.dumps({"state": "done", "reused_from": run.parent.name, "time": 0.0})
    )
    assert parcae("sample", other, *ask)[1] == want


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("The sea", "--loops", "0,1"), "start at 1 or more"),
        (("",), "the prompt is empty"),
        (("The sea", "--tokens", 100), "do not fit into the model's context of 64"),
        (("The sea", "--temperature", -1), "the temperature is -1"),
        (("The sea", "--tokenizer", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_input_is_one_sentence(parcae, run, args, words):
    code, out, err = parcae("sample", run, *args)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_another_architecture_is_one_sentence(parcae, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for verb, further in (("sample", "The sea"), ("export", tmp_path / "out")):
        code, out, err = parcae(verb, tmp_path, further)
        assert (code, out) == (2, "")
        assert "describes a model of type 'llama'" in err
        assert len(err.splitlines()) == 1


def test_a_tokenizer_that_lies_nowhere_is_said_with_where_it_was_looked_for(parcae, tmp_path):
    from parcae_core.trial import DataConfig

    data = DataConfig(corpus="books", fingerprint="f", tokenizer="bpe-260", vocab_size=260)
    run = trained_run(tmp_path / "sweep" / "trial", data=data)
    code, _, err = parcae("sample", run, "The sea")
    assert code == 2
    assert "trained with tokenizer 'bpe-260' of corpus 'books'" in err
    assert "name it with --tokenizer" in err


def test_an_export_can_be_sampled_in_the_published_format(parcae, run, tmp_path):
    code, out, _ = parcae("export", run, tmp_path / "published", "--format", "parcae")
    assert (code, out.strip()) == (0, str(tmp_path / "published"))
    ask = ("The sea", "--tokens", 8, "--loops", "2", "--json")
    texts = [json.loads(parcae("sample", m, *ask)[1]) for m in (run, tmp_path / "published")]
    assert texts[0] == texts[1]
    code, _, _ = parcae("export", run, tmp_path / "hub")
    assert code == 0
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["num_loops"] == 3
    code, _, err = parcae("export", run, tmp_path / "hub")
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize("form", ["transformers", "parcae"])
def test_an_export_that_the_disk_does_not_hold_is_one_sentence_and_leaves_nothing(
    parcae, run, tmp_path, form
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk refuses it
    try:
        code, out, err = parcae("export", run, tmp_path / "new", "--format", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (1, "")
    assert err.startswith("parcae: ")
    assert "the command did not finish" in err
    assert list(tmp_path.iterdir()) == []
