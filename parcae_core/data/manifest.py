"""manifest.json of a prepared folder: what was read, how it was packed, and what the files must be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from parcae_core.config import MAX_CONTEXT
from parcae_core.data.corpus import SPLITS, Split
from parcae_core.data.io import file_sha256
from parcae_core.errors import UserError
from parcae_core.plain import build, is_plain_name, read_json

FORMAT_VERSION = 1
MAX_GENERATED_TOKENS = (1 << 16) + 1  # of a row: thousands of them are drawn at once
MANIFEST_NAME = "manifest.json"
_AGAIN = "Delete the folder and prepare it again (`parcae data prepare`, or run the sweep again)"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceManifest:
    """The corpus that was read."""

    name: str
    fingerprint: str
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> documents or files left out


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerManifest:
    """The tokenizer that was used."""

    name: str
    sha256: str
    vocab_size: int
    bos_id: int
    eos_id: int | None
    pad_id: int | None
    alphabet: str | None = None  # of a generated corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitManifest:
    """One split. `tokens` counts the ids of all pieces with their BOS, before cropping:
    `tokens == rows * row_tokens + cropped_tokens`."""

    file: str
    documents: int
    text_bytes: int  # UTF-8
    pieces: int
    tokens: int
    rows: int
    cropped_tokens: int
    sha256: str

    def __post_init__(self) -> None:
        if min(self.documents, self.text_bytes, self.pieces, self.rows, self.cropped_tokens) < 0:
            raise ValueError("counts are >= 0")

    @property
    def cropped_share(self) -> float:
        return self.cropped_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """A corpus drawn while it is read, whose splits have no file; losses in nats per token, see `state_reveals`."""

    corpus: str  # its name with its parameters
    floor: float
    loss_by_reach: dict[str, float]
    floor_by_label: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if odd := [r for r in self.loss_by_reach if not r.isdecimal()]:
            raise ValueError(f"{odd[0]!r:.40} is no reach")


def require_row_tokens(row_tokens: int, *, generated: bool) -> None:
    """Refuse rows that no model reads.

    Raises:
        UserError: with the limits.
    """
    most = MAX_GENERATED_TOKENS if generated else MAX_CONTEXT + 1
    if not 2 <= row_tokens <= most:
        raise UserError(
            f"row_tokens is {row_tokens}; it must be from 2 to {most}, the context and one more"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything needed to trust and read a prepared folder."""

    data_id: str
    source: SourceManifest
    tokenizer: TokenizerManifest
    packing: dict[str, Any]  # long_documents, buffer_pieces
    row_tokens: int
    dtype: Literal["uint16", "uint32"]  # of the ids on disk, little-endian
    splits: dict[Split, SplitManifest]
    files: dict[str, str]  # other files -> sha256
    generated: Generated | None = None  # None for text
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        shards = (s.file for s in self.splits.values() if s.file)  # none of a generated corpus
        # names may come from anybody, and are joined to the folder's
        for name in (*self.files, *shards):
            if not is_plain_name(name):
                raise ValueError(f"{name!r} is not the name of a file in the folder")
        if self.splits.keys() != set(SPLITS):
            raise ValueError(f"splits are {', '.join(self.splits)}; {', '.join(SPLITS)} are needed")
        require_row_tokens(self.row_tokens, generated=self.generated is not None)

    @property
    def long_documents(self) -> str:
        """How documents longer than a row were packed; a generated corpus has none, whatever was asked for."""
        return "cut" if self.generated else str(self.packing.get("long_documents", "cut"))

    def shard_bytes(self, split: Split) -> int:
        itemsize = {"uint16": 2, "uint32": 4}[self.dtype]
        return 0 if self.generated else self.splits[split].rows * self.row_tokens * itemsize

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        UserError: if it is missing, damaged, or of another format version.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise UserError(
            f"{folder}: no {MANIFEST_NAME} in it; needed: a folder written by `parcae data prepare`"
        )
    data = read_json(path)
    if (version := data.get("version")) != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version!r:.40}, and this program reads {FORMAT_VERSION}. {_AGAIN}"
        )
    try:
        return build(Manifest, data, "manifest")
    except ValueError as error:
        raise UserError(f"{path}: damaged manifest ({error}). {_AGAIN}") from error


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compare the shards with the manifest by size: instant, and catches a truncated file.

    Raises:
        UserError: naming the file, its size and the size needed.
    """
    for split in SPLITS if manifest.generated is None else ():
        path = folder / manifest.splits[split].file
        needed = manifest.shard_bytes(split)
        if not path.exists():
            raise UserError(f"{path}: missing; the manifest names it with {needed} bytes. {_AGAIN}")
        if (found := path.stat().st_size) != needed:
            what = "truncated" if found < needed else "longer than its manifest says"
            raise UserError(
                f"{path}: {what}: {found} bytes found, {needed} needed "
                f"({manifest.splits[split].rows} rows of {manifest.row_tokens} {manifest.dtype}). "
                f"{_AGAIN}"
            )


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest by content; reads all of it.

    Raises:
        UserError: naming the first file that differs.
    """
    check_sizes(folder, manifest)
    shards = {s.file: s.sha256 for s in manifest.splits.values() if s.file}
    for name, needed in (manifest.files | shards).items():
        path = folder / name
        found = file_sha256(path) if path.exists() else "nothing"
        if found != needed:
            raise UserError(
                f"{path}: its content does not match the manifest (sha256 {found[:12]} found, "
                f"{needed[:12]} needed). {_AGAIN}"
            )
