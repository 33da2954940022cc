"""A law that an installed package offers under the entry point group `parcae.laws`."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.errors import InputError

MODULE = """
from analysis.laws import formula
LAW = formula.law("E + B*D**-b", {"D": "n_tokens"}, name="ours", source="a package of tests")
def made():
    return LAW
def other():
    return 3
"""
ENTRIES = "[parcae.laws]\nours = their_laws:LAW\nmade = their_laws:made\nother = their_laws:other\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package as pip leaves it: a module, and its metadata beside it."""
    (tmp_path / "their_laws.py").write_text(MODULE)
    info = tmp_path / "their_laws-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-laws\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("name", ["ours", "made"])
def test_a_law_of_another_package_is_fitted_by_its_name(installed, name):
    d = np.geomspace(1e8, 1e11, 20)
    frame = pd.DataFrame({"D": d, "loss": 2.0 + 400 * d**-0.3})
    result = analysis.fit(frame, name, interval="none", loss="lsq")
    assert result.values == pytest.approx({"E": 2.0, "B": 400, "b": 0.3}, rel=1e-5)


def test_an_entry_that_is_no_law_is_named(installed):
    frame = pd.DataFrame({"D": [1e8, 2e8, 3e8], "loss": [3.0, 2.9, 2.8]})
    with pytest.raises(InputError, match="their_laws:other gives a int"):
        analysis.fit(frame, "other")
