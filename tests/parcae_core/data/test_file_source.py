"""A user's corpus: text, JSONL, Parquet, folders of shards, hostile documents, S3."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from parcae_core.data import file_source as module
from parcae_core.data.manifest import read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError


@pytest.fixture(scope="module")
def texts():
    """A few hundred real paragraphs."""
    found = [p for d in resolve("python-stdlib").documents("val") for p in d.split("\n\n")]
    return [p for p in found if len(p) > 200][:300]


def fineweb_table(texts):
    """The columns and types of FineWeb-Edu's Parquet files."""
    n = len(texts)
    return pa.table(
        {
            "text": texts,
            "id": [f"<urn:uuid:{i}>" for i in range(n)],
            "dump": ["CC-MAIN-2013-20"] * n,
            "url": [f"http://example.org/{i}" for i in range(n)],
            "file_path": ["s3://commoncrawl/crawl-data/x.warc.gz"] * n,
            "language": ["en"] * n,
            "language_score": [0.97] * n,
            "token_count": pa.array([len(t or "") // 4 for t in texts], pa.int64()),
            "score": [3.1] * n,
            "int_score": pa.array([3] * n, pa.int64()),
        }
    )


def write_parquet(folder, texts, n_shards=3):
    folder.mkdir(exist_ok=True)
    per = len(texts) // n_shards
    for i in range(n_shards):
        table = fineweb_table(texts[i * per : (i + 1) * per])
        pq.write_table(table, folder / f"{i:03d}_00000.parquet", row_group_size=50)
    return folder


def write_jsonl(path, texts, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"id": 1, "text": text}) + "\n")


def all_texts(source):
    return [text for _, text in source.stream()]


def test_fineweb_edu_shards(tmp_path, texts):
    folder = write_parquet(tmp_path / "fineweb", texts)
    (folder / "README.md").write_text("The data set's card is not part of the corpus.")
    source = resolve(str(folder))
    assert all_texts(source) == texts
    path = prepare(source, "bytes", 129, tmp_path / "root")
    manifest = read_manifest(path)
    assert sum(s.documents for s in manifest.splits.values()) == len(texts)
    assert manifest.splits["val"].documents > 5


def test_the_format_of_a_corpus_does_not_enter_its_fingerprint(tmp_path, texts):
    write_parquet(tmp_path / "parquet", texts)
    write_jsonl(tmp_path / "one.jsonl", texts)
    (tmp_path / "zipped").mkdir()
    write_jsonl(tmp_path / "zipped" / "a.jsonl.gz", texts[:100], gzip.open)
    write_jsonl(tmp_path / "zipped" / "b.jsonl", texts[100:])
    places = ("parquet", "one.jsonl", "zipped")
    assert len({resolve(str(tmp_path / p)).fingerprint for p in places}) == 1


def test_another_text_column(tmp_path, texts):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"body": t}) + "\n" for t in texts[:50]))
    assert all_texts(resolve(str(path), text_column="body")) == texts[:50]
    with pytest.raises(
        UserError, match=r"line 1: no field 'text'; found \['body'\].*--text-column"
    ):
        all_texts(resolve(str(path)))
    pq.write_table(pa.table({"body": texts[:5], "text": range(5)}), tmp_path / "c.parquet")
    assert all_texts(resolve(str(tmp_path / "c.parquet"), text_column="body")) == texts[:5]
    with pytest.raises(UserError, match="column 'text' holds int64; string needed"):
        all_texts(resolve(str(tmp_path / "c.parquet")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut o', r"c\.jsonl: line 2 is not JSON .*cut off"),
        ('["text"]', r"line 2: no field 'text'; found list"),
        ('{"text": 5}', r"line 2: 'text' is 5; text needed"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UserError, match=message):
        resolve(str(tmp_path / "c.jsonl")).fingerprint  # noqa: B018 - reading it is the test


def test_damaged_shards_are_named(tmp_path, texts):
    folder = write_parquet(tmp_path / "p", texts)
    victim = folder / "001_00000.parquet"
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"001_00000\.parquet: cannot read it as Parquet"):
        all_texts(resolve(str(folder)))
    write_jsonl(tmp_path / "c.jsonl.gz", texts, gzip.open)
    data = (tmp_path / "c.jsonl.gz").read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"c\.jsonl\.gz: damaged gzip"):
        all_texts(resolve(str(tmp_path / "c.jsonl.gz")))


def test_hostile_documents_are_left_out_and_counted(tmp_path, texts):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for i, text in enumerate(texts[:60]):
        (folder / f"good{i}.txt").write_text(text)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_bytes(b" \n\t\n")
    (folder / "binary.txt").write_bytes(b"\x7fELF\0\0\0\1text")
    (folder / "latin1.txt").write_bytes("café crème".encode("latin-1"))
    (folder / "huge.txt").write_text("a" * 3_000_000 + " " * 1_500_000 + "end")
    (folder / ".hidden.txt").write_text("not for us")
    (folder / "special.txt").write_text("<|bos|> in a text is text, 259 of them\n" * 3)
    manifest = read_manifest(prepare(resolve(str(folder)), "bpe-400", 65, tmp_path / "root"))
    assert manifest.source.skipped == {"binary (NUL)": 1, "empty": 2, "not UTF-8": 1}
    assert sum(s.documents for s in manifest.splits.values()) == 62
    assert sum(s.text_bytes for s in manifest.splits.values()) > 4_500_000


def test_hostile_rows_are_left_out_and_counted(tmp_path, texts):
    good = texts[:30]
    with (tmp_path / "c.jsonl").open("wb") as file:
        for text in [*good, "", None, "nul \0 inside", "lone \ud800 surrogate"]:
            file.write(json.dumps({"text": text}).encode() + b"\n")
        file.write(b'{"text": "caf\xe9"}\n\n')
    jsonl = resolve(str(tmp_path / "c.jsonl"))
    assert all_texts(jsonl) == good
    assert jsonl.skipped == {"empty": 2, "binary (NUL)": 1, "not UTF-8": 2}

    raw = [t.encode() for t in good] + [b"", None, b"caf\xe9", b"nul \0"]
    column = pa.array(raw, pa.binary())
    broken = pa.StringArray.from_buffers(
        len(raw), *[column.buffers()[i] for i in (1, 2, 0)], column.null_count
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "c.parquet")
    parquet = resolve(str(tmp_path / "c.parquet"))
    assert all_texts(parquet) == good
    assert parquet.skipped == {"empty": 2, "binary (NUL)": 1, "not UTF-8": 1}


def test_a_text_file_too_large_for_one_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "c.txt").write_text("x" * 1001)
    with pytest.raises(UserError, match=r"c\.txt: 1001 bytes in one text file.*Split it"):
        all_texts(resolve(str(tmp_path)))


def test_a_corpus_too_large_to_plan_with_is_prepared_first(tmp_path, texts, monkeypatch):
    folder = write_parquet(tmp_path / "big", texts)
    small = resolve(str(folder))
    expected = prepare(small, "bytes", 65, tmp_path / "small_root")
    monkeypatch.setattr(module, "READ_AT_ONCE_BYTES", 1000)
    big = resolve(str(folder))
    with pytest.raises(UserError, match="Prepare it once with `parcae data prepare`"):
        big.fingerprint  # noqa: B018 - reading it is the test
    made = prepare(big, "bytes", 65, tmp_path / "big_root")
    assert made.name == expected.name
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {
        p.name: p.read_bytes() for p in expected.iterdir()
    }
    assert resolve(str(made)).fingerprint == small.fingerprint

    # The second time its folder is found without reading the text.
    again = resolve(str(folder))
    monkeypatch.setattr(again, "stream", lambda: pytest.fail("read again"))
    assert prepare(again, "bytes", 65, tmp_path / "big_root") == made


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path, texts):
    folder = write_parquet(tmp_path / "c", texts)
    source = resolve(str(folder))
    os.utime(folder / "002_00000.parquet", ns=(1, 1))
    with pytest.raises(UserError, match=r"002_00000\.parquet changed while it was read"):
        prepare(source, "bytes", 65, tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def test_an_unreadable_kind_of_url(tmp_path):
    with pytest.raises(UserError, match="cannot open this kind of URL"):
        resolve("nonsense://bucket/folder")


def test_urls_of_local_files_read_the_same_text(tmp_path, texts):
    folder = write_parquet(tmp_path / "c", texts)
    for url in (f"file://{folder}", f"file://{folder}/000_00000.parquet"):
        source = resolve(url)
        assert not source.is_quick
        assert all_texts(source) == (texts if url.endswith("c") else texts[:100])
    with pytest.raises(UserError, match="nothing is there"):
        resolve(f"file://{tmp_path}/absent")
