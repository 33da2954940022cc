"""The command as users script it: stdout, stderr, exit code, and what is left on the disk."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.cli import app
from sweeps.cli.sweep import load_plan, named
from sweeps.store import Store
from tests.support.tiny import SPEC, spec_dict, tiny_plan, write_spec
from tests.sweeps.test_store import good_result, put, report


def parcae(*args, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sweeps.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def in_process(monkeypatch, capsys, *args) -> tuple[int, str, str]:
    """Like `parcae`, without the cost of a process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["parcae", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def cpu_s() -> float:
    """Processor time of finished child processes: what else runs on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def everything_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_plan_prints_every_trial_and_touches_nothing(tmp_path):
    spec = write_spec(tmp_path)
    before = everything_in(tmp_path)
    done = parcae("plan", spec, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert [(t["mean_recurrence"], t["budget_flops"]) for t in data["trials"]] == [
        (1, 4e8), (2, 4e8), (1, 8e8), (2, 8e8),
    ]  # fmt: skip
    assert {"trial_id", "n_tokens", "n_steps"} <= set(data["trials"][0])
    table = parcae("plan", spec, "--trials", cwd=tmp_path).stdout
    assert all(t["trial_id"] in table for t in data["trials"])
    assert "time assumed" in table
    assert everything_in(tmp_path) == before


def test_plan_of_36_trials_takes_under_two_seconds(tmp_path):
    spec = write_spec(
        tmp_path,
        data={"corpus": "python-stdlib"},
        budgets_flops=[i * 1e9 for i in range(1, 7)],
        mean_recurrence=[2, 4, 6, 8, 10, 12],
    )
    began = cpu_s()
    done = parcae("plan", spec, "--json")
    assert cpu_s() - began < 2.0  # the project's own bar, the corpus read included
    assert len(json.loads(done.stdout)["trials"]) == 36


def test_plan_of_1000_trials_takes_under_three_seconds(tmp_path):
    spec = write_spec(
        tmp_path,
        budgets_flops=[i * 1e9 for i in range(1, 11)],
        mean_recurrence=[2, 3, 4, 5, 6, 7, 8, 9, 10, 12],
        seeds=list(range(10)),
    )
    began = cpu_s()
    done = parcae("plan", spec, "--json")
    assert cpu_s() - began < 3.0
    assert len({t["trial_id"] for t in json.loads(done.stdout)["trials"]}) == 1000


def test_planning_loads_no_heavy_library(tmp_path):
    code = (
        "import sys; sys.argv = ['parcae', 'plan', sys.argv[1]]\n"
        "from sweeps.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print([m for m in ('torch', 'ray', 'pandas', 'wandb', 'scipy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(write_spec(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "nanoo"},
        {"budget_flops": 3},
        {"min_steps": 1000},
        {"depth": {"mean_backprop_depth": 4}},
        {"data": {"corpus": "no/such/folder"}},
        {"data": {"corpus": "empty"}},
        {"resources": {"cpus": 4096}},
        {"resources": {"cpus": 3, "processes": 3}},
        {"depth": {"kind": "curriculum"}},
    ],
)
def test_bad_input_is_one_message_and_exit_code_2_and_nothing_written(
    verb, changes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    spec = write_spec(tmp_path, **changes)
    before = everything_in(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, verb, spec)
    elsewhere = ({"resources": {"cpus": 4096}}, {"data": {"corpus": "no/such/folder"}})
    if changes in elsewhere and verb == "plan":
        assert code == 0  # planning for another machine is fine, or for a corpus to come
        return
    assert (code, out) == (2, "")
    assert err.startswith("parcae: ")
    assert "Traceback" not in err
    assert everything_in(tmp_path) == before


def test_an_unwritable_output_folder_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    spec = write_spec(tmp_path)
    code, _, err = in_process(monkeypatch, capsys, "run", spec, "--out", tmp_path / "file")
    assert code == 2
    assert "cannot be written" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "SPEC", "--at", "nan"), "--at is nan; a finite number is needed"),
        (("plan", "SPEC", "--flops-per-s", "inf"), "--flops-per-s is inf"),
        (("plan", "SPEC", "--gpus", 10**30), "--gpus is a number of 100 bits"),
        (("run", "SPEC", "--checkpoint-every", "inf"), "--checkpoint-every is inf"),
        (("params", "-m", 5000), "--mean-recurrence is 5000; it must be from 1 to 1000"),
        (("params", "-m", 2, "-m", 10**30), "is a number of 100 bits"),
        (("plan", "SPEC", "--set", "resources.gpus=1e300"), "gpus=1e+300 must be <= 1000000"),
        (("plan", "SPEC", "--set", "resources.processes=1e15"), "processes=1e+15 must be <="),
        (("plan", "SPEC", "--set", "optim.muon_momentum=1e308"), "it must lie in [0, 1)"),
        (
            ("plan", "SPEC", "--set", "budgets_flops=[1e308]", "--set", "mean_recurrence=[2]"),
            "n_steps is 1.935e+301;",
        ),
        (
            ("run", "SPEC", "--out", "s3:/"),
            "s3:/: names no bucket; give one, like s3://bucket/runs",
        ),
        (("status", "x", "--address", "ray://127.0.0.1:1"), "is Ray Client's"),
        (
            ("submit", "SPEC", "--address", "http://h:1", "--out", "runs"),
            "--out runs: would lie in",
        ),
        (
            ("cluster", "check", "--address", "http://h:1", "--out", "runs"),
            "give a folder that every node sees",
        ),
        (("run", "SPEC", "--node-gpus", 2), "--node-gpus 2: a node has CPUs too; give --node-cpus"),
        (("run", "SPEC", "--node-cpus", 2), "name the cluster with --address"),
        (("run", "SPEC", "--cpus", 2, "--address", "auto"), "--address names a cluster; give one"),
        (("plan", "x" * 300), "File name too long; give another path"),
        (("status", "x" * 300), "File name too long; give another path"),
        (("data", "prepare", "state-reveals", "--context", 10**15), "must be from 2 to 65537"),
        (("data", "prepare", "text", "--context", 10**15), "row_tokens is 1000000000000001"),
        (("data", "prepare", "state-reveals(seed=" + "9" * 400 + ")"), "seed is"),
        (("data", "prepare", ""), "the corpus has no name"),
        (("data", "prepare", "state-reveals(seed=1=2)"), "'1=2'"),
        (("data", "prepare", "state-reveals(zipf=inf)"), "zipf is inf; it must be from 0 to 10"),
    ],
)
def test_numbers_and_names_that_mean_nothing_are_one_sentence(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    spec = write_spec(tmp_path)
    before = everything_in(tmp_path)
    asked = [spec if a == "SPEC" else a for a in arguments]
    code, out, err = in_process(monkeypatch, capsys, *asked)
    assert (code, out) == (2, "")
    assert words in err
    assert err.strip().startswith("parcae: ")
    assert len(err.strip().splitlines()) == 1
    assert everything_in(tmp_path) == before


def test_a_sweep_by_its_name_reads_the_corpus_beside_its_spec(tmp_path, monkeypatch, capsys):
    spec = write_spec(tmp_path / "specs", data={"corpus": "text"})
    planned = load_plan(spec)
    Store(tmp_path / "runs", "tiny").write_plan(planned, spec)
    monkeypatch.chdir(tmp_path)
    kept = named(Path("tiny")).spec
    assert kept == Path("runs/tiny/spec.yaml")
    Store("runs", "again").write_plan(
        load_plan(kept), kept
    )  # as `parcae run tiny --set name=again`
    for name in ("tiny", "again"):
        code, out, _ = in_process(monkeypatch, capsys, "plan", name, "--json")
        assert code == 0
        assert [t["trial_id"] for t in json.loads(out)["trials"]] == list(planned.trial_ids)


def test_advice_to_go_on_repeats_the_command_as_it_was_given(tmp_path, monkeypatch, capsys):
    spec = write_spec(tmp_path)
    planned, store = load_plan(spec), Store(tmp_path / "runs", "tiny")
    store.write_plan(planned, spec)
    for trial in planned.trials:
        report(store, trial, state="failed", reason="made up")
    given = ("run", spec, "--no-ray", "--out", store.out, "--extend", "--wandb", "disabled")
    code, _, err = in_process(monkeypatch, capsys, *given, "--lost-workers", 1)
    assert code == 1
    assert f"then `parcae {' '.join(map(str, given))} --lost-workers 1`." in err


def test_a_plan_for_more_slots_than_there_are_trials_costs_no_memory(tmp_path, monkeypatch, capsys):
    ask = ("plan", write_spec(tmp_path), "--cpus", 10**15, "--json")
    code, out, _ = in_process(monkeypatch, capsys, *ask)
    data = json.loads(out)
    assert code == 0
    assert data["totals"]["makespan_s"] == max(t["estimated_s"] for t in data["trials"])


def test_a_corpus_without_a_training_text_is_planned(tmp_path, monkeypatch, capsys):
    spec = write_spec(tmp_path)
    monkeypatch.setattr(
        "parcae_core.data.corpus.split_by_text", lambda d, _: (("val", x) for x in d)
    )
    monkeypatch.setattr(
        "parcae_core.data.file_source.split_by_text", lambda d, _: (("val", x) for x in d)
    )
    code, out, _ = in_process(monkeypatch, capsys, "plan", spec, "--json")
    assert code == 0
    assert {t["epochs"] for t in json.loads(out)["trials"]} == {None}


def test_a_folder_whose_name_is_no_text_is_named(tmp_path, monkeypatch, capsys):
    planned = tiny_plan()
    store = Store(tmp_path / "caf\udce9", planned.name)  # bytes of another encoding
    store.write_plan(planned, write_spec(tmp_path / "spec"))
    put(store, planned.trials[0], good_result(planned.trials[0]))
    code, out, _ = in_process(monkeypatch, capsys, "status", store.root)
    assert code == 0
    assert rf"{tmp_path}/caf\udce9/tiny" in out
    code, out, err = in_process(
        monkeypatch, capsys, "collect", store.root
    )  # pyarrow takes text alone
    assert (code, out) == (2, "")
    assert rf"{tmp_path}/caf\udce9/tiny/" in err
    assert "is not UTF-8 text" in err


@pytest.mark.parametrize("verb", ["status", "logs", "stop"])
def test_a_cluster_that_does_not_answer_is_one_sentence(verb, monkeypatch, capsys):
    pytest.importorskip("ray")
    where = "http://127.0.0.1:9"  # the discard port: nobody listens
    code, out, err = in_process(monkeypatch, capsys, verb, "demo", "--address", where)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert f"--address {where}: " in err
    assert "ray dashboard" in err
    assert ".." not in err


@pytest.mark.parametrize("verb", ["status", "retry", "collect", "sync"])
def test_a_sweep_that_is_not_there_is_one_sentence(verb, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, verb, "nope")
    assert (code, out) == (2, "")
    assert err.startswith("parcae: nope: no sweep at ")
    assert len(err.splitlines()) == 1


def test_a_sweep_is_watched_until_its_last_trial_has_ended(tmp_path, monkeypatch, capsys):
    planned = tiny_plan()
    store = Store(tmp_path, planned.name)
    store.write_plan(planned, write_spec(tmp_path / "spec"))
    left, waits = list(planned.trials), []

    def one_ends(seconds):
        waits.append(seconds)
        put(store, left[0], good_result(left.pop(0)))

    monkeypatch.setattr("time.sleep", one_ends)
    code, out, _ = in_process(monkeypatch, capsys, "status", store.root, "--watch", "7")
    assert code == 0
    assert waits == [7.0] * 4
    assert [line for line in out.splitlines() if "done" in line.split()][-1].strip() == "4 done"
    assert "1 done, 3 planned" in out or "3 planned, 1 done" in out


def test_a_missing_extra_is_named_with_the_way_to_get_it(monkeypatch, capsys):
    for name in [n for n in sys.modules if n.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sweeps.runner.cluster.jobs", raising=False)
    monkeypatch.delattr("sweeps.runner.cluster.jobs", raising=False)
    code, _, err = in_process(monkeypatch, capsys, "logs", "x", "--address", "http://127.0.0.1:9")
    assert code == 2
    assert err == (
        "parcae: this needs ray, which is not installed: pip install 'parcae-scaling[sweep]'\n"
    )


def test_the_base_install_plans(tmp_path):
    extras = (
        "torch",
        "ray",
        "wandb",
        "filelock",
        "safetensors",
        "tokenizers",
        "tiktoken",
        "rustbpe",
    )
    code = (
        f"import sys\nfor name in {extras}: sys.modules[name] = None\n"
        "sys.argv = ['parcae', 'plan', sys.argv[1]]\nfrom sweeps.cli.app import main\nmain()"
    )
    command = [sys.executable, "-c", code, str(write_spec(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 trials, 0 finished" in done.stdout


def test_every_verb_teaches_by_example(monkeypatch, capsys):
    _, shown, _ = in_process(monkeypatch, capsys, "--help")
    for verb in ("plan", "run", "status", "retry", "collect", "demo", "fit", "report", "params"):
        assert verb in shown
    sweep = ("plan", "run", "submit", "status", "logs", "stop", "retry", "collect", "sync", "demo")
    laws = ("fit", "predict", "optimal", "loops", "judge", "plot", "report")
    trained = ("eval", "sample", "export", "score")
    for verb in (*sweep, *laws, *trained, "init", "spec"):
        code, text, _ = in_process(monkeypatch, capsys, verb, "--help")
        assert code == 0
        assert f"parcae {verb}" in text
        assert "Examples:" in text
    assert in_process(monkeypatch, capsys, "--version")[1].startswith("parcae-scaling ")


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["1e18", "nan", "-1", "ceil(mu/2)", "bytes", "bpe-", "nano", "\ud7ff"]),
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
_keys = st.one_of(
    st.sampled_from([*SPEC, "n_tokens", "seeds", "depth", "optim"]), st.text(max_size=8)
)


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    changes=st.dictionaries(_keys, _values, min_size=1, max_size=3),
    verb=st.sampled_from(["plan", "run"]),
)
def test_malformed_specs_never_yield_a_traceback_a_folder_or_a_cluster(
    changes, verb, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def no_cluster(*_: object):
        raise AssertionError("a cluster was to be started")

    monkeypatch.setattr("sweeps.runner.driver.ray_cluster", no_cluster)
    # Without the budgets nothing valid can be left to run, whatever the changes happen to mean
    write_spec(tmp_path)  # the corpus
    spec = tmp_path / "s.yaml"
    spec.write_text(yaml.safe_dump(spec_dict(**({"budgets_flops": None} | changes))))
    before = everything_in(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, verb, spec)
    assert code in (0, 2) if verb == "plan" else code == 2
    if code == 2:
        assert out == ""
        assert all(line.startswith("parcae: ") for line in err.splitlines())
    assert everything_in(tmp_path) == before


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(text=st.text(st.sampled_from("ab:-[]{}&*!|>#'\"%@ \n1e\t"), max_size=40))
def test_text_that_is_hardly_yaml_never_yields_a_traceback(text, tmp_path, monkeypatch, capsys):
    spec = tmp_path / "s.yaml"
    spec.write_text(text)
    code, out, err = in_process(monkeypatch, capsys, "plan", spec)
    assert (code, out) == (2, "")
    assert err.startswith("parcae: ")
