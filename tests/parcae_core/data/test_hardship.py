"""Real trouble: a killed process, a full disk, an object store."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parcae_core.data.manifest import read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.reader import RowReader
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError

# A file:// URL counts as remote, so that finished parts are kept; small parts, so that there are
# many; a slow encoder, so that a kill lands in the middle of the work.
PROGRAM = """
import sys, time
import parcae_core.data.encode as encode
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.data.tokenizer import ByteTokenizer

encode.BATCH_BYTES = 10_000
plain = ByteTokenizer.encode
ByteTokenizer.encode = lambda self, text: (time.sleep(0.001), plain(self, text))[1]
print(prepare(resolve(sys.argv[1]), "bytes", 65, sys.argv[2], workers=2))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The validation documents' paragraphs as two JSONL shards, about half a megabyte."""
    folder = tmp_path_factory.mktemp("shards")
    texts = [p for d in resolve("python-stdlib").documents("val") for p in d.split("\n\n")]
    for name, part in (("a.jsonl", texts[::2]), ("b.jsonl", texts[1::2])):
        lines = [json.dumps({"text": t}) for t in part]
        (folder / name).write_text("\n".join(lines))
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_killed_at_random_it_goes_on_to_the_same_bytes(shards, tmp_path):
    expected = prepare(resolve(str(shards)), "bytes", 65, tmp_path / "calm")
    root = tmp_path / "rough"
    command = [sys.executable, "-c", PROGRAM, f"file://{shards}", str(root)]
    rng = random.Random(0)
    parts = 0
    for _ in range(6):
        process = subprocess.Popen(command)
        # At least one part further, then at any point of the work on the next ones.
        while len(list(root.glob(".work-*/batches/*.npz"))) <= parts:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (root / expected.name).exists()
        parts = len(list(root.glob(".work-*/batches/*.npz")))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    path = Path(done.stdout.splitlines()[-1])
    assert path.name == expected.name
    assert contents(path) == contents(expected)
    assert sorted(p.name for p in root.iterdir()) == [".sources", path.name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-400"])
def test_a_full_disk_is_a_message_and_leaves_it_clean(small_disk, tokenizer):
    with pytest.raises(UserError, match="the disk is full while preparing python-stdlib"):
        prepare(resolve("python-stdlib"), tokenizer, 129, small_disk)
    assert not list(small_disk.iterdir())


def test_a_full_disk_keeps_finished_parts_of_a_remote_corpus(small_disk, shards, tmp_path):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    with pytest.raises(UserError, match=r"finished parts are kept in .*\.work-"):
        prepare(resolve(f"file://{shards}"), "bytes", 65, small_disk)
    filler.unlink()
    (small_disk / "filler").write_bytes(b"")
    expected = prepare(resolve(str(shards)), "bytes", 65, tmp_path)
    with pytest.raises(UserError, match="the disk is full"):
        # Still too small for the parts and the result together; nothing is half-published.
        prepare(resolve(f"file://{shards}"), "bytes", 65, small_disk)
    assert not (small_disk / expected.name).exists()


@pytest.fixture
def bucket(monkeypatch, shards):
    """A real S3 server on this machine, with the shards in a bucket."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpora")
    for path in shards.iterdir():
        client.upload_file(str(path), "corpora", f"code/{path.name}")
    yield client
    client.close()
    server.stop()


def test_s3_gives_the_bytes_of_the_local_folder(bucket, shards, tmp_path):
    source = resolve("s3://corpora/code")
    path = prepare(source, "bytes", 65, tmp_path / "s3")
    local = prepare(resolve(str(shards)), "bytes", 65, tmp_path / "local")
    # The label is the folder's name; everything else is the text.
    assert read_manifest(path).source.fingerprint == resolve(str(shards)).fingerprint
    for split in ("train", "val"):
        a, b = (RowReader(p, split, data_seed=0) for p in (path, local))
        assert (a.rows(0, a.n_rows) == b.rows(0, b.n_rows)).all()

    # Found again by the listing alone; a rewritten object is another corpus.
    again = resolve("s3://corpora/code")
    assert again.work_key == source.work_key
    assert prepare(again, "bytes", 65, tmp_path / "s3") == path
    bucket.put_object(Bucket="corpora", Key="code/b.jsonl", Body=b'{"text": "rewritten"}')
    with pytest.raises(UserError, match=r"b\.jsonl changed while it was read"):
        source.check_unchanged()
    assert resolve("s3://corpora/code").work_key != source.work_key


def test_s3_mistakes_are_named(bucket, monkeypatch):
    with pytest.raises(UserError, match="nothing is there"):
        resolve("s3://corpora/absent")
    with pytest.raises(UserError, match="cannot list it"):
        resolve("s3://no-such-bucket/x")
    # Nothing listens there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"cannot list it .*Could not connect"):
        resolve("s3://corpora/code")


def test_an_object_that_cannot_be_read_is_named(bucket, tmp_path):
    source = resolve("s3://corpora/code")
    bucket.delete_object(Bucket="corpora", Key="code/b.jsonl")
    with pytest.raises(UserError, match=r"code/b\.jsonl: reading it failed"):
        prepare(source, "bytes", 65, tmp_path)
