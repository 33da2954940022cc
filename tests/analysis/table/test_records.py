import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from analysis.errors import InputError
from analysis.table import records


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_saved_table_loads_as_it_was(records_table, tmp_path, suffix):
    path = records.save(records_table, tmp_path / f"records{suffix}")
    loaded = records.load(path)
    pd.testing.assert_frame_equal(loaded, records.validate(records_table))
    assert loaded.git_commit[0] == "0012345"  # text of digits keeps its leading zeros
    assert {c.name: c.dtype for c in records.COLUMNS} == loaded.dtypes.astype(str).to_dict()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.fixture
def records_table(simulate, paper_loss):
    """Two runs at two loops each, and a diverged one."""
    table = simulate(paper_loss, budgets=(1e18,), recurrences=(2, 4, 6), loops=(1, 2))
    lost = table.trial_id == "1e+18-6"
    table = table[~lost | (table.n_loops == 2)].reset_index(drop=True)
    lost = table.trial_id == "1e+18-6"
    table.loc[lost, ["val_loss", "val_bpb"]] = np.nan
    table.loc[lost, "status"] = "diverged"
    table.loc[lost, "status_reason"] = "loss not finite at step 40"
    table["diverged_step"] = pd.array([None, None, None, None, 40], dtype="Int64")
    return table


def test_a_sweep_folder_is_found_by_its_file(records_table, tmp_path):
    with pytest.raises(InputError, match=r"holds no records\.parquet"):
        records.load(tmp_path)
    records.save(records_table, tmp_path / "records.parquet")
    assert len(records.load(tmp_path)) == 5


def test_row_order_does_not_change_the_hash(records_table):
    shuffled = records_table.sample(frac=1, random_state=0)
    a, b = (records.sha256(records.validate(t)) for t in (records_table, shuffled))
    assert a == b
    changed = records_table.assign(val_loss=records_table.val_loss * (1 + 1e-15))
    assert records.sha256(records.validate(changed)) != a


def _set(column, value, row=0):
    def change(table):
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"val_loss": "val_los"}), "'val_los'; did you mean 'val_loss'"),
        (lambda t: t.drop(columns="seed"), "1 of 44 columns missing .seed"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "has 2 rows for n_loops"),
        (_set("val_loss", -1.0), "val_loss=-1.0; it must be finite and above 0"),
        (_set("val_loss", np.nan), "val_loss=nan; it must be finite"),
        (_set("val_loss", 3.0, row=4), "val_loss=3.0; it must be empty unless"),
        (_set("n_loops", 0), "n_loops=0; it must be at least 1"),
        (_set("n_loops", 1.5), "needs a int in loops: not whole: 1.5"),
        (_set("n_tokens", "many"), "needs a int in tokens"),
        (_set("n_tokens", 7), "must be n_steps [*] batch_tokens"),
        (_set("status", "running"), "status is 'running' in 1 rows; it must be one of done"),
        (_set("mean_backprop_depth", 5), "at most mean_recurrence"),
        (_set("n_params_unrolled", 5), r"mean_recurrence - 1\) \* core"),
        (_set("status_reason", None, row=4), "a reason when the run is not done"),
        (_set("seed", None), "'seed' is empty in 1 of 5 rows"),
        (_set("train_flops_exact", 0), "train_flops_exact=0.0; it must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(records_table, change, message):
    with pytest.raises(InputError, match=message) as error:
        records.validate(change(records_table), where="my.csv")
    assert str(error.value).startswith("my.csv: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", "not parquet", "cannot be read as parquet"),
        ("a.ods", "", "the suffix is '.ods'"),
        ("a.csv", "", "the file is empty"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        records.load(path)
    with pytest.raises(InputError, match="no such file or folder"):
        records.load(tmp_path / "absent.csv")


def test_importing_the_contract_is_cheap():
    code = "import sys, analysis.table.records, sweeps.cli.laws; print('pandas' in sys.modules, 'numpy' in sys.modules, 'scipy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False", "False"]
