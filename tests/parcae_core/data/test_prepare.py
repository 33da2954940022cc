"""Preparation: complete or absent, the same bytes every time, safe to repeat and to share."""

import errno
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from parcae_core.data import prepare as module
from parcae_core.data.bpe import load_prepared_tokenizer
from parcae_core.data.manifest import read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.reader import RowReader
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def stdlib():
    return resolve("python-stdlib")


@pytest.fixture(scope="module")
def prepared(stdlib, tmp_path_factory):
    return prepare(stdlib, "bytes", 129, tmp_path_factory.mktemp("root"))


def write_corpus(folder, n=60):
    """Stretches of the standard library as documents of 400 to 2,000 characters."""
    folder.mkdir()
    text = max(resolve("python-stdlib").documents("val"), key=len)
    for i in range(n):
        (folder / f"{i}.txt").write_text(text[700 * i : 700 * i + 400 * (i % 5 + 1)])
    return str(folder)


def test_the_manifest_tells_what_is_there(prepared, stdlib):
    manifest = read_manifest(prepared)
    assert prepared.name == manifest.data_id
    assert manifest.source.fingerprint == stdlib.fingerprint
    for split, s in manifest.splits.items():
        texts = [d.encode() for d in stdlib.documents(split)]
        assert s.documents == len(texts)
        assert s.text_bytes == sum(map(len, texts))
        # Every byte is an id, and every piece has a BOS.
        assert s.tokens == s.text_bytes + s.pieces
        assert s.tokens == s.rows * 129 + s.cropped_tokens
        assert s.cropped_share < 0.005
        data = (prepared / s.file).read_bytes()
        assert len(data) == manifest.shard_bytes(split)
        assert hashlib.sha256(data).hexdigest() == s.sha256


def test_rows_are_the_corpus(prepared, stdlib):
    """Whole rows are looked up in the text: each run between BOS ids is a stretch of a document."""
    reader = RowReader(prepared, "train", data_seed=0)
    text = b"\0".join(d.encode() for d in stdlib.documents("train"))
    for row in reader.batch(0, 50).ids:
        assert row[0] == 256
        for piece in np.split(row, np.flatnonzero(row == 256))[1:]:
            assert piece[1:].astype(np.uint8).tobytes() in text


def test_first_validation_rows_come_from_many_documents(prepared, stdlib):
    rows = RowReader(prepared, "val", data_seed=0).rows(0, 64)
    documents = [d.encode() for d in stdlib.documents("val")]
    owners = set()
    for row in rows:
        piece = row[1 : 1 + int(np.argmax(np.append(row[1:], 256) == 256))]
        owners |= {i for i, d in enumerate(documents) if piece.astype(np.uint8).tobytes() in d}
    assert len(owners) > len(documents) / 3


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-400"])
def test_identical_input_gives_identical_bytes(tmp_path, tokenizer, monkeypatch):
    # Small batches, so that several threads have something to get in the wrong order.
    monkeypatch.setattr("parcae_core.data.encode.BATCH_BYTES", 500)
    corpus = write_corpus(tmp_path / "c")
    made = [
        prepare(resolve(corpus), tokenizer, 65, tmp_path / str(w), workers=w) for w in (1, 2, 7)
    ]
    assert len({p.name for p in made}) == 1
    assert contents(made[0]) == contents(made[1]) == contents(made[2])
    assert not [p for p in (tmp_path / "1").iterdir() if p != made[0]]


def test_bpe_rows_decode_to_the_text(tmp_path):
    corpus = resolve(write_corpus(tmp_path / "c"))
    folder = prepare(corpus, "bpe-400", 65, tmp_path / "root")
    tokenizer = load_prepared_tokenizer(folder)
    row = RowReader(folder, "val", data_seed=0).rows(0, 1)[0]
    assert row[0] == tokenizer.bos_id == 397
    second_bos = int(np.argmax(np.append(row[1:], 397) == 397)) + 1
    piece = tokenizer.decode_bytes(row[:second_bos])
    assert len(piece) > second_bos
    assert any(piece in d.encode() for d in corpus.documents("val"))


def test_what_is_asked_for_names_the_folder(tmp_path, stdlib):
    root = tmp_path / "root"
    corpus = resolve(write_corpus(tmp_path / "c"))
    paths = {
        prepare(corpus, "bytes", 33, root),
        prepare(corpus, "bytes", 65, root),
        prepare(corpus, "bpe-300", 65, root),
        prepare(corpus, "bytes", 65, root, long_documents="crop"),
    }
    assert len(paths) == 4
    assert read_manifest(prepare(corpus, "bytes", 65, root)).packing["long_documents"] == "cut"


def test_a_finished_folder_is_reused_and_a_damaged_one_refused(tmp_path):
    corpus = write_corpus(tmp_path / "c")
    folder = prepare(resolve(corpus), "bytes", 65, tmp_path / "root")
    before = (folder / "train.bin").stat()
    assert prepare(resolve(corpus), "bytes", 65, tmp_path / "root") == folder
    assert (folder / "train.bin").stat().st_mtime_ns == before.st_mtime_ns
    with (folder / "train.bin").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(UserError, match=r"train\.bin: its content does not match the manifest"):
        prepare(resolve(corpus), "bytes", 65, tmp_path / "root")


def test_a_prepared_folder_is_a_corpus_of_the_same_fingerprint(prepared, stdlib, tmp_path):
    source = resolve(str(prepared))
    assert source.fingerprint == stdlib.fingerprint
    assert prepare(source, "bytes", 129, tmp_path) == prepared
    with pytest.raises(UserError, match=r"rows of 129 ids; 'bytes' and 257 are needed"):
        prepare(source, "bytes", 257, tmp_path)
    with pytest.raises(UserError, match="holds token rows, not the documents"):
        next(iter(source.documents("train")))
    assert not list(tmp_path.iterdir())


def _prepare_and_report(corpus, root, barrier, results):
    barrier.wait()
    results.put(str(prepare(resolve(corpus), "bpe-300", 33, root)))


def test_concurrent_callers_share_one_result(tmp_path):
    corpus = write_corpus(tmp_path / "c")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (corpus, tmp_path / "root", barrier, results)
    processes = [context.Process(target=_prepare_and_report, args=arguments) for _ in range(3)]
    for p in processes:
        p.start()
    found = {results.get(timeout=60) for _ in processes}
    for p in processes:
        p.join()
    assert len(found) == 1
    assert [p.name for p in (tmp_path / "root").iterdir()] == [Path(found.pop()).name]


def test_losing_the_race_to_another_machine_keeps_the_winner(tmp_path, monkeypatch):
    """Without a shared lock two processes finish: the second finds the name taken."""
    corpus, root = write_corpus(tmp_path / "c"), tmp_path / "root"
    other = prepare(resolve(corpus), "bytes", 65, tmp_path / "elsewhere")
    publish = module.publish

    def publish_late(folder, final):
        other.rename(final)
        publish(folder, final)

    monkeypatch.setattr(module, "publish", publish_late)
    folder = prepare(resolve(corpus), "bytes", 65, root)
    assert [p for p in root.iterdir()] == [folder]


def test_failure_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    corpus = resolve(write_corpus(tmp_path / "c"))
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(module.np, "save", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="the disk is full while preparing c"):
        prepare(corpus, "bytes", 65, tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def test_an_unwritable_root_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    corpus = resolve(write_corpus(tmp_path / "c"))
    with pytest.raises(UserError, match=r"file/root: cannot prepare c there"):
        prepare(corpus, "bytes", 65, tmp_path / "file" / "root")


def test_a_split_without_a_row_says_so(tmp_path):
    corpus = resolve(write_corpus(tmp_path / "c", n=2))
    with pytest.raises(UserError, match=r"split has 1 documents .* one row needs 2200"):
        prepare(corpus, "bytes", 2200, tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def test_nothing_in_a_folder_names_this_machine(prepared):
    text = (prepared / "manifest.json").read_text()
    assert str(prepared.parent) not in text
    assert os.uname().nodename not in text
    assert json.loads(text)["source"]["name"] == "python-stdlib"
