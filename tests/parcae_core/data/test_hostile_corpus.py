"""A corpus folder from a stranger: links, names that are not text, lines without end."""

import json
import os
from pathlib import Path

import pytest

from parcae_core.data import file_source as module
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"text {i}, " * 20)
    return folder


def names(source) -> list[str]:
    return sorted(entry.path for entry in source.entries)


def test_a_link_out_of_the_folder_is_refused_unless_asked_for(corpus, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a key")
    (corpus / "notes.txt").symlink_to(secret)
    with pytest.raises(
        UserError, match=r"notes\.txt: a link to .*secret\.txt, outside of the corpus"
    ):
        resolve(str(corpus))
    followed = resolve(str(corpus), follow_links=True)
    assert names(followed) == ["0.txt", "1.txt", "2.txt", "3.txt", "notes.txt"]
    assert "a key" in {text for _, text in followed.stream()}


def test_a_link_to_a_folder_is_refused_too_and_read_once_when_followed(corpus, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "more.txt").write_text("more text")
    (corpus / "linked").symlink_to(shards)
    with pytest.raises(UserError, match="linked: a link to"):
        resolve(str(corpus))
    (shards / "back").symlink_to(shards)  # a circle
    assert "linked/more.txt" in names(resolve(str(corpus), follow_links=True))
    assert len(resolve(str(corpus), follow_links=True).entries) == 5


def test_links_inside_and_links_that_nobody_reads_are_fine(corpus):
    (corpus / "again.txt").symlink_to(corpus / "0.txt")
    (corpus / "python").symlink_to("/usr/bin/env")
    (corpus / ".hidden.txt").symlink_to("/etc/hostname")
    assert names(resolve(str(corpus))) == ["0.txt", "1.txt", "2.txt", "3.txt", "again.txt"]


def test_names_that_are_not_utf8_are_read(corpus, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(corpus) + b"/\xff\xfe.txt"))
    odd.write_text("strange name, " * 20)
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/corpus-\xff"))
    corpus.rename(root)
    source = resolve(str(root))
    assert len(source.entries) == 5
    folder = prepare(source, "bytes", 17, tmp_path / "data")
    assert json.loads((folder / "manifest.json").read_text())["source"]["name"] == "corpus-\ufffd"


@pytest.mark.parametrize("place", ["/proc", "/proc/self", "/sys", "/proc/self/environ"])
def test_the_state_of_the_machine_is_no_corpus(place):
    with pytest.raises(UserError, match="not files but the state of this machine"):
        resolve(place)


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "a\0b", "x" * 5_000])
def test_what_is_no_file_is_refused(place):
    with pytest.raises(UserError, match="corpus"):
        resolve(place)


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 3 << 20)
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "short"}\n{"text": "')
        file.truncate(64 << 30)  # sparse: 64 GiB of one line
    with pytest.raises(UserError, match=r"a\.jsonl: a line has more than 3145728 bytes"):
        list(resolve(str(path))._read_all())


def test_lines_are_those_of_the_file_whatever_their_length(tmp_path):
    texts = ["a", "", "b" * 30_000, "ü" * 9, "c\u2028d"]  # longer than what is read at once
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts))
    assert list(resolve(str(path))._read_all()) == texts


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(corpus, monkeypatch):
    (corpus / "closed").mkdir()
    if os.getuid() == 0:  # nothing is closed to root, so the system's answer is put in its place
        real = os.scandir

        def scandir(path):
            if os.fspath(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
    else:
        (corpus / "closed").chmod(0)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
        resolve(str(corpus))
