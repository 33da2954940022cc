"""Built-in corpora and folders: the selection, the split and the fingerprint."""

import hashlib
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from parcae_core.data import python_source
from parcae_core.data.corpus import Fingerprint, hash64, split_by_text
from parcae_core.data.python_source import python_documents
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError


@pytest.fixture(scope="module")
def stdlib():
    return resolve("python-stdlib")


def test_stdlib_is_real_source_split_by_path(stdlib):
    train, val = list(stdlib.documents("train")), list(stdlib.documents("val"))
    assert not set(train) & set(val)
    everything = dict(python_documents("python-stdlib", Counter()))
    assert sorted(everything.values()) == sorted(train + val)
    assert "class ArgumentParser" in everything["argparse.py"]
    # What the recipe leaves out
    assert not [p for p in everything if {"test", "idlelib", "site-packages"} & set(p.split("/"))]
    assert "turtle.py" not in everything
    # DATA.md: about 7 MB train and 0.5 MB validation; other versions differ by a little
    assert 4e6 < sum(len(t.encode()) for t in train) < 12e6
    assert 0.02 < len(val) / len(everything) < 0.16
    by_path = {t for p, t in everything.items() if hash64(f"val:{p}".encode()) < 2**64 / 12}
    assert set(val) == by_path


def test_stdlib_text_is_normalised_and_free_of_repeats(stdlib):
    seen = set()
    for document in stdlib.documents("train"):
        assert "\r" not in document
        assert not any(line != line.rstrip() for line in document.split("\n"))
        for paragraph in document.split("\n\n"):
            collapsed = " ".join(paragraph.split())
            if len(collapsed) >= 80:
                assert collapsed not in seen
                seen.add(collapsed)


def test_stdlib_is_the_same_in_another_process(stdlib):
    program = "from parcae_core.data.sources import resolve\nimport sys\nprint(resolve('python-stdlib').fingerprint, 'torch' in sys.modules)"
    # Another hash seed: nothing may hang on the order of a set.
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "7", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == [stdlib.fingerprint, "False"]


def test_recipe_filters_and_counts(tmp_path, monkeypatch):
    good = (
        "def f():\n    return 'a perfectly ordinary line of Python source code, of some length'\n\n"
        * 2
    )
    body = "x = some_function(argument)  \r\n" * 40
    files = {
        "a.py": "# the first file\n\n" + good + body,
        "b.py": "# the second file, with a paragraph of a.py\n\n" + good + body.upper(),
        "small.py": "x = 1\n",
        "digits.py": "0123456789, " * 100,
        "turtle.py": body,
        "test/t.py": body,
        "config-3.11/c.py": body,
        "pkg/notes.txt": body,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n" + b"y = 2\n" * 200)
    (tmp_path / "nul.py").write_bytes(b"z = 3\n" * 200 + b"\0")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    skipped = Counter()
    documents = dict(python_documents("python-stdlib", skipped))
    assert documents.keys() == {"a.py", "b.py"}
    assert documents["a.py"].count("perfectly ordinary") == 1  # its own repeat is dropped
    assert "perfectly ordinary" not in documents["b.py"]
    assert "  \n" not in documents["a.py"]
    assert skipped == {
        "too small or too large": 1,
        "mostly digits": 1,
        "not UTF-8": 1,
        "binary (NUL)": 1,
    }


def test_python_without_sources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match=r"looked for \*\.py source files in .*found none"):
        python_source.python_documents("python-stdlib", Counter())


def test_a_misspelt_corpus_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'python-stdlib'"):
        resolve("python-stdlb")


def test_a_missing_folder_is_named_with_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"my_corpus'.*\.jsonl or \.parquet"):
        resolve(str(tmp_path / "my_corpus"))


def test_a_folder_without_text_is_named_with_what_was_looked_for(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"no file of text there\. Looked for \.jsonl.*\.txt"):
        resolve(str(tmp_path))


def test_fingerprint_is_a_function_of_order_split_and_text():
    def of(*items):
        f = Fingerprint()
        for split, text in items:
            f.add_digest(split, hashlib.sha256(text.encode()).digest())
        return f.hexdigest()

    base = of(("train", "a"), ("val", "b"))
    assert base == of(("train", "a"), ("val", "b"))
    others = [
        of(("val", "b"), ("train", "a")),
        of(("train", "a"), ("train", "b")),
        of(
            ("train", "ab"),
        ),
        of(("train", "a"), ("val", "c")),
    ]
    assert base not in others
    assert len(set(others)) == 4


def write_texts(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        (folder / f"{i}.txt").write_text(f"Document number {i}, about nothing in particular.\n")
    return folder


def test_folder_fingerprint_survives_a_move_and_not_an_edit(tmp_path):
    folder = write_texts(tmp_path / "a", 40)
    first = resolve(str(folder)).fingerprint
    moved = folder.rename(tmp_path / "b")
    assert resolve(str(moved)).fingerprint == first
    (moved / "7.txt").write_text("Changed.\n")
    assert resolve(str(moved)).fingerprint != first


def test_copies_of_a_text_share_a_split_and_the_share_is_kept():
    texts = [f"text {i % 3000}" for i in range(6000)]
    labelled = list(split_by_text(texts, 1 / 12))
    split_of = {}
    for split, document in labelled:
        assert split_of.setdefault(document, split) == split
    share = sum(s == "val" for s in split_of.values()) / len(split_of)
    # 3,000 draws at 1/12: one standard deviation is 0.005
    assert share == pytest.approx(1 / 12, abs=0.02)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_few_documents_still_have_a_validation_split(n):
    labelled = list(split_by_text((f"t{i}" for i in range(n)), 1e-9))
    assert Counter(split for split, _ in labelled) == {"val": 1, "train": n - 1}


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(UserError, match="val_share is 1"):
        resolve("python-stdlib", val_share=1)
