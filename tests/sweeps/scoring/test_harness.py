"""The real harness on tasks in local files: our adapter's answers, at several numbers of loops in one pass."""

import json
import math
import sys
from importlib.util import find_spec

import pytest
import yaml

from parcae_core import likelihood
from parcae_core.checkpoints.load import load_model
from parcae_core.likelihood import log_likelihoods
from sweeps.cli import app
from sweeps.scoring.scores import Scores
from tests.support.trained import trained_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the harness's own libraries
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"),
]
DOCS = [
    {"question": "the sea", "choices": ["is blue", "is old", "sings"], "answer": i % 3}
    for i in range(6)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from parcae_core.checkpoints.native import newest_checkpoint
    from parcae_core.trial import planned_to_dict
    from sweeps.storage.files import sealed, write_json

    folder = trained_run(tmp_path_factory.mktemp("sweep") / "trial")
    trial = newest_checkpoint(folder / "checkpoints").trial
    write_json(folder / "trial.json", sealed(planned_to_dict(trial)))
    return folder


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a task of each kind, whose data lie in a file beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCS))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
    }
    kinds = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "read": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{choices[0]}}" + " and on" * 12,
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "x",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | data | kind))
    return folder


@pytest.fixture
def parcae(monkeypatch, capsys):
    def call(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parcae", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def test_three_kinds_of_task_are_scored_at_each_number_of_loops(parcae, run, tasks, monkeypatch):
    passes = []
    once = likelihood._scored
    monkeypatch.setattr(likelihood, "_scored", lambda *a: passes.append(a[2]) or once(*a))
    ask = ("score", run, "--tasks", "choose,read,write", "--include", tasks)
    code, out, err = parcae(*ask, "--loops", "1,3,5", "--json")
    assert code == 0, err
    by_loops = json.loads(out)[str(run)]["by_loops"]
    assert list(by_loops) == ["1", "3", "5"]
    assert all(loops == [1, 3, 5] for loops in passes)  # none for one number alone
    assert "not evaluated at 5 loops" in err
    trained = load_model(run)
    begin = [256, *b"the sea"]
    pairs = [(begin, list(b" " + c.encode())) for c in DOCS[0]["choices"]]
    scored = log_likelihoods(trained.model, pairs, loops=[1, 3, 5], seed=trained.seed)
    for loops, rows in by_loops.items():
        found = {(r["task"], r["metric"]): r["value"] for r in rows}
        likeliest = max(range(3), key=lambda i: scored[i][int(loops)][0])
        assert found["choose", "acc"] == sum(d["answer"] == likeliest for d in DOCS) / len(DOCS)
        assert found["read", "bits_per_byte"] > 0
        assert found["write", "exact_match"] == 0
    # a text longer than the context is read in windows, each token once and with all the room there is
    whole = list(("the sea is blue" + " and on" * 12).encode())
    n, most = len(whole), trained.model.config.context
    assert most < n < 2 * most
    windows = [([256], whole[:most]), (whole[n - most - 1 : most], whole[most:])]
    nats = [s[5][0] for s in log_likelihoods(trained.model, windows, loops=[5], seed=trained.seed)]
    assert found["read", "bits_per_byte"] == pytest.approx(-sum(nats) / n / math.log(2))
    kept = Scores.read(run)
    assert kept.step == 12
    assert kept.columns(3)["score_choose_acc"] == kept.by_loops["3"][0].value


def test_a_shot_and_a_limit_are_part_of_the_name(parcae, run, tasks):
    ask = ("score", run, "--tasks", tasks / "choose.yaml", "--loops", 3, "--limit", 2, "--json")
    code, out, err = parcae(*ask)
    assert code == 0, err
    names = {r["task"] for r in json.loads(out)[str(run)]["by_loops"]["3"]}
    assert names == {"choose-first2"}


def test_a_task_without_its_data_or_a_name_is_one_sentence(parcae, run, tasks, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    away = yaml.safe_load((tasks / "choose.yaml").read_text())
    away |= {"task": "away", "dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    (tasks / "away.yaml").write_text(yaml.safe_dump(away))
    ask = ("score", run, "--include", tasks, "--tasks")
    for name, words in (
        ("away", "tasks away: their data cannot be had"),
        ("chose", "did you mean"),
    ):
        code, out, err = parcae(*ask, name)
        assert (code, out) == (2, "")
        said = [line for line in err.splitlines() if line.startswith("parcae: ")]
        assert len(said) == 1
        assert words in said[0]
