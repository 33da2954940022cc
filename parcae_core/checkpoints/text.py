"""The tokenizer that a trained model reads and writes: named by its trial, kept with its data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from parcae_core.checkpoints.load import TrainedModel
from parcae_core.data.bpe import load_json, load_prepared_tokenizer
from parcae_core.data.manifest import MANIFEST_NAME, read_manifest
from parcae_core.data.state_reveals import StateReveals
from parcae_core.data.tokenizer import (
    CHARACTERS,
    HUB,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    hub_file,
)
from parcae_core.errors import UserError
from parcae_core.trial import DataConfig

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(path: Path, trained: TrainedModel, given: Path | None = None) -> Tokenizer:
    """The tokenizer of a model that `load_model` read.

    Args:
        path: what `load_model` was given.
        given: a tokenizer.json, a prepared folder or `hf:<repository>`, instead of looking for it.

    Raises:
        UserError: it is not found, or has more ids than the model.
    """
    data = None if trained.trial is None else trained.trial.data
    if given is not None and str(given).startswith(HUB):
        found = load_json(hub_file(str(given)))
    elif given is not None:
        found = load_prepared_tokenizer(given) if given.is_dir() else load_json(given)
    elif data is not None:
        found = _of_trial(path, data)
    elif (path / TOKENIZER_FILE).is_file():
        found = load_json(path / TOKENIZER_FILE)
    else:
        raise UserError(
            f"{path}: a published checkpoint without {TOKENIZER_FILE}; name the tokenizer with "
            "--tokenizer FILE, or put the file into the folder"
        )
    if found.vocab_size > trained.model.config.vocab_size:
        raise UserError(
            f"{given or path}: the tokenizer has {found.vocab_size} ids and the model "
            f"{trained.model.config.vocab_size}; give the tokenizer that the model was trained with"
        )
    return found


def _of_trial(path: Path, data: DataConfig) -> Tokenizer:
    if data.tokenizer == "bytes":
        return ByteTokenizer()
    if data.tokenizer == CHARACTERS:
        return CharacterTokenizer(StateReveals.named(data.corpus).alphabet)
    looked = []
    for folder in _prepared_folders(path, data):
        looked.append(folder.parent)
        manifest = read_manifest(folder)
        same_text = manifest.source.fingerprint == data.fingerprint
        if same_text and manifest.tokenizer.name == data.tokenizer:
            return load_prepared_tokenizer(folder)
    where = ", ".join(map(str, dict.fromkeys(looked))) or "no folder _data above it"
    raise UserError(
        f"{path}: it was trained with tokenizer {data.tokenizer!r} of corpus {data.corpus!r}, whose "
        f"prepared folder is not there (looked in {where}); name it with --tokenizer"
    )


def _prepared_folders(path: Path, data: DataConfig) -> Iterator[Path]:
    """Where the trial's data may lie: the corpus itself, or _data beside the sweep."""
    if (corpus := Path(data.corpus)).is_dir() and (corpus / MANIFEST_NAME).is_file():
        yield corpus
    for above in path.resolve().parents:
        yield from (m.parent for m in sorted((above / "_data").glob(f"*/{MANIFEST_NAME}")))
