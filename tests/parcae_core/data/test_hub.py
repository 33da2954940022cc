"""Tokenizers and corpora of the hub, against a stand-in for it, in a process as a user starts it."""

import json
import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from parcae_core.data.manifest import read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from tests.support.hub_server import hub

pytest.importorskip("huggingface_hub", reason="the extra hf is not installed")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A data set of JSONL shards and a model with a tokenizer, as GPT-2's is made."""
    root = tmp_path_factory.mktemp("hub")
    shards = root / "datasets" / "me" / "books" / "part"
    shards.mkdir(parents=True)
    (shards.parent / "README.md").write_text("about the books")
    for i in range(2):
        texts = (f"Book {i}, chapter {j}. " + "The whale swam on. " * 40 for j in range(30))
        (shards / f"{i}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        ["The whale swam on."],
        trainers.BpeTrainer(
            vocab_size=270,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder = root / "models" / "me" / "small"
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    with hub(root) as address:
        yield root, address


def data_prepare(address, where, corpus, tokenizer, **env):
    command = [sys.executable, "-m", "sweeps.cli", "data", "prepare", corpus, "--json"]
    command += ["--tokenizer", tokenizer, "--context", "32", "--out", str(where / "data")]
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(where / "home"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | settings | env, check=False
    )


def test_a_corpus_and_a_tokenizer_of_the_hub_give_what_the_same_files_give(repositories, tmp_path):
    root, address = repositories
    done = data_prepare(address, tmp_path, "hf://datasets/me/books", "hf:me/small")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "data").glob("books-*")
    found = read_manifest(folder)
    local = prepare(
        resolve(str(root / "datasets" / "me" / "books")),
        str(root / "models" / "me" / "small" / "tokenizer.json"),
        33,
        tmp_path / "local",
    )
    want = read_manifest(local)
    assert found.source.fingerprint == want.source.fingerprint
    assert found.tokenizer == want.tokenizer
    assert found.splits == want.splits
    # once fetched, the tokenizer needs no network; the corpus does
    again = data_prepare(
        address, tmp_path, str(root / "datasets/me/books"), "hf:me/small", HF_HUB_OFFLINE="1"
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("corpus", "tokenizer", "words"),
    [
        ("hf://datasets/me/nothing", "bytes", "corpus 'hf://datasets/me/nothing': cannot list it"),
        ("python-stdlib", "hf:me/nothing", "its tokenizer.json cannot be had"),
    ],
)
def test_what_the_hub_has_not_is_one_sentence(repositories, tmp_path, corpus, tokenizer, words):
    done = data_prepare(repositories[1], tmp_path, corpus, tokenizer)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len([x for x in done.stderr.splitlines() if x.startswith("parcae: ")]) == 1
    assert "Traceback" not in done.stderr
