"""Corpus to a folder of packed rows, done once and shared by every trial that reads it.

The folder appears under its final name complete or not at all. What is in it depends on the text,
the tokenizer and the row length alone: not on the number of workers, nor on where a preparation
was interrupted and taken up again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from parcae_core.cpus import usable_cpus
from parcae_core.data.corpus import SPLITS, Fingerprint, Source, Split
from parcae_core.data.encode import encode_stream
from parcae_core.data.io import file_sha256, folder_lock, publish, write_synced
from parcae_core.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Generated,
    Manifest,
    SourceManifest,
    SplitManifest,
    TokenizerManifest,
    check_hashes,
    check_sizes,
    read_manifest,
    require_row_tokens,
)
from parcae_core.data.pack import BUFFER_PIECES, VAL_ORDER_KEY, LongDocuments, Shard
from parcae_core.data.sources import GeneratedSource, PreparedSource
from parcae_core.data.tokenizer import (
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    TokenizerName,
    id_dtype,
    parse_tokenizer,
)
from parcae_core.errors import UserError

# A BPE learns from the first documents of the train split up to this much text: more changes
# the merges little, and the counts of distinct words have to fit into memory.
BPE_TEXT_BYTES = 256 << 20
# A finished folder is compared by hash on reuse up to this size, and by file sizes above it.
HASH_ON_REUSE_BYTES = 512 << 20

# A generated corpus has no end; these say how far `batch` and `rows` may be asked
GENERATED_TRAIN_ROWS = 1 << 40
GENERATED_VAL_ROWS = 1 << 20

Progress = Callable[[str, int, int | None], None]  # (stage, bytes of text done, bytes on disk)


def prepare(
    source: Source,
    tokenizer: str | None,
    row_tokens: int,
    root: Path,
    *,
    long_documents: LongDocuments = "cut",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Tokenise and pack a corpus, or find that it has been done.

    Args:
        tokenizer: `bytes`, `bpe-<vocab_size>`, or the path of a tokenizer.json; None, of a
            `PreparedSource` alone: its own.
        row_tokens: ids per row: the context and one more.
        root: folder of prepared folders; created when missing.
        long_documents: see `parcae_core.data.pack`.
        workers: threads that tokenise; the available cores by default. Changes no byte.
        progress: called with (stage, bytes of text done, bytes on disk or None).

    Returns:
        `root/<data_id>`, checked; for a `PreparedSource`, its own folder.

    Raises:
        UserError: if the corpus, the tokenizer or the disk does not allow it, or a finished folder
            is damaged.
    """
    require_row_tokens(row_tokens, generated=isinstance(source, GeneratedSource))
    if tokenizer is None and isinstance(source, PreparedSource):
        return _given(source, source.manifest.tokenizer.name, row_tokens)
    name = parse_tokenizer(tokenizer or "", source.alphabet)
    if isinstance(source, PreparedSource):
        return _given(source, name.name, row_tokens)
    job = _Job(source, name, row_tokens, long_documents, Path(root), progress or (lambda *_: None))
    try:
        job.root.mkdir(parents=True, exist_ok=True)
        return job.find() or job.make(workers or usable_cpus())
    except OSError as error:
        raise job.disk_error(error) from error


def _given(source: PreparedSource, tokenizer: str, row_tokens: int) -> Path:
    """The folder a spec names itself, if it holds what is asked for."""
    manifest = source.manifest
    found = (manifest.tokenizer.name, manifest.row_tokens)
    if found != (tokenizer, row_tokens):
        raise UserError(
            f"{source.path}: prepared with tokenizer {found[0]!r} and rows of {found[1]} ids; "
            f"{tokenizer!r} and {row_tokens} are needed. Prepare {manifest.source.name} with "
            f"`--tokenizer {tokenizer} --context {row_tokens - 1}`, or change the spec"
        )
    _check_finished(source.path, manifest)
    return source.path


def _check_finished(path: Path, manifest: Manifest) -> None:
    total = sum(manifest.shard_bytes(split) for split in SPLITS)
    (check_hashes if total <= HASH_ON_REUSE_BYTES else check_sizes)(path, manifest)


@dataclass
class _Job:
    """One preparation: its settings, its names on disk, and its steps."""

    source: Source
    name: TokenizerName
    row_tokens: int
    long_documents: LongDocuments
    root: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.settings = {
            "version": FORMAT_VERSION,
            "tokenizer": self.name.name,
            "bpe_text_bytes": BPE_TEXT_BYTES if self.name.kind == "bpe" else None,
            "row_tokens": self.row_tokens,
            "long_documents": self.long_documents,
            "buffer_pieces": BUFFER_PIECES,
            "val_order": VAL_ORDER_KEY,
        }
        key = _digest(self.settings | {"source": self.source.work_key})[:16]
        self.work = self.root / f".work-{key}"
        # Remembers the fingerprint of a corpus too large to be read just to find its folder.
        self.memo = self.root / ".sources" / self.source.work_key[:32]

    def data_id(self, fingerprint: str) -> str:
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.source.name).strip("-.") or "corpus"
        digest = _digest(self.settings | {"fingerprint": fingerprint})[:12]
        return f"{slug}-{self.name.name}-{self.row_tokens}-{digest}"

    def find(self) -> Path | None:
        """The finished folder, checked, if there is one."""
        if self.source.is_quick:
            fingerprint = self.source.fingerprint
        elif self.memo.exists():
            fingerprint = self.memo.read_text(errors="replace").strip()
        else:
            return None
        final = self.root / self.data_id(fingerprint)
        if not final.exists():
            return None
        _check_finished(final, read_manifest(final))
        return final

    def make(self, workers: int) -> Path:
        @cache  # asked at every look at the lock, said once
        def waiting() -> None:
            self.progress("waiting for another process", 0, None)

        with folder_lock(self.work, waiting):
            # Another process may have finished while this one waited.
            if found := self.find():
                return found
            with self._work_folder():
                manifest = self._build(workers)
            final = self.root / manifest.data_id
            publish(self.work / "out", final)
            _check_finished(final, read_manifest(final))
            if not self.source.is_quick:
                self.memo.parent.mkdir(exist_ok=True)
                write_synced(self.memo, manifest.source.fingerprint.encode() + b"\n")
            shutil.rmtree(self.work)
            return final

    @contextmanager
    def _work_folder(self) -> Iterator[None]:
        """Kept after a failure only where taking it up again saves more than it litters."""
        shutil.rmtree(self.work / "out", ignore_errors=True)
        (self.work / "out").mkdir(parents=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(self.work / "out", ignore_errors=True)
            if self.source.is_quick:
                shutil.rmtree(self.work, ignore_errors=True)
            raise

    def _build(self, workers: int) -> Manifest:
        out = self.work / "out"
        tokenizer = self._tokenizer()
        if isinstance(self.source, GeneratedSource):
            return self._write_manifest(out, tokenizer, self._endless(), self.source.fingerprint)
        fingerprint = Fingerprint()
        with ExitStack() as files:
            shards = {
                split: Shard(out, split, tokenizer, self.row_tokens, self.long_documents)
                for split in SPLITS
            }
            for shard in shards.values():
                files.callback(shard.close)
            self._encode(tokenizer, shards, fingerprint, workers)
            self.source.check_unchanged()
            splits = {split: shard.finish() for split, shard in shards.items()}
        self._check_rows(splits)
        return self._write_manifest(out, tokenizer, splits, fingerprint.hexdigest())

    def _endless(self) -> dict[Split, SplitManifest]:
        """Splits of a generated corpus: no file, and more rows than anyone reads."""
        length = self.row_tokens - 1
        return {
            split: SplitManifest(
                file="",
                documents=rows,
                text_bytes=rows * length,
                pieces=rows,
                tokens=rows * self.row_tokens,
                rows=rows,
                cropped_tokens=0,
                sha256="",
            )
            for split, rows in (("train", GENERATED_TRAIN_ROWS), ("val", GENERATED_VAL_ROWS))
        }

    def _encode(
        self,
        tokenizer: Tokenizer,
        shards: dict[Split, Shard],
        fingerprint: Fingerprint,
        workers: int,
    ) -> None:
        cache = None if self.source.is_quick else self.work / "batches"
        done = 0
        for batch in encode_stream(self.source.stream(), tokenizer, workers=workers, cache=cache):
            for split, digest, n_bytes, ids in batch.documents():
                fingerprint.add_digest(split, digest)
                shards[split].add(ids, n_bytes)
            done += batch.text_bytes
            self.progress("tokenising", done, self.source.total_bytes)

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer, trained first if the name asks for one; its file is part of the output."""
        if self.name.kind == "bytes":
            return ByteTokenizer()
        if self.name.kind == "characters":
            return CharacterTokenizer(self.source.alphabet)
        from parcae_core.data.bpe import load_json, train_bpe

        if self.name.path is not None:
            return load_json(self.name.path)
        kept = self.work / "tokenizer.json"
        if not kept.exists():
            self.progress("training the tokenizer", 0, BPE_TEXT_BYTES)
            trained = train_bpe(self._training_texts(), self.name.vocab_size)
            write_synced(kept, trained.to_json().encode())
        return load_json(kept)

    def _training_texts(self) -> Iterator[str]:
        used = 0
        for text in self.source.documents("train"):
            used += len(text.encode())
            if used > BPE_TEXT_BYTES:
                break
            yield text

    def _write_manifest(
        self,
        out: Path,
        tokenizer: Tokenizer,
        splits: dict[Split, SplitManifest],
        fingerprint: str,
    ) -> Manifest:
        text = tokenizer.to_json()
        if text is not None:
            write_synced(out / "tokenizer.json", text.encode())
        with (out / "token_bytes.npy").open("wb") as file:
            np.save(file, tokenizer.token_bytes())
            file.flush()
            os.fsync(file.fileno())
        others = [p for p in sorted(out.iterdir()) if p.suffix != ".bin"]
        known = None
        if isinstance(source := self.source, GeneratedSource):
            known = Generated(corpus=source.name, **source.generator.known(self.row_tokens - 1))
        manifest = Manifest(
            data_id=self.data_id(fingerprint),
            source=SourceManifest(
                name=self.source.name,
                fingerprint=fingerprint,
                skipped=dict(sorted(self.source.skipped.items())),
            ),
            tokenizer=TokenizerManifest(
                name=self.name.name,
                sha256=hashlib.sha256((text or self.name.name).encode()).hexdigest(),
                vocab_size=tokenizer.vocab_size,
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                pad_id=tokenizer.pad_id,
                alphabet=self.source.alphabet,
            ),
            packing={"long_documents": self.long_documents, "buffer_pieces": BUFFER_PIECES},
            row_tokens=self.row_tokens,
            dtype=id_dtype(tokenizer.vocab_size).name,
            splits=splits,
            files={p.name: file_sha256(p) for p in others},
            generated=known,
        )
        write_synced(out / MANIFEST_NAME, manifest.to_json().encode())
        return manifest

    def _check_rows(self, splits: dict[Split, SplitManifest]) -> None:
        for split, s in splits.items():
            if s.rows == 0:
                counts = {name: other.documents for name, other in splits.items()}
                raise UserError(
                    f"corpus {self.source.name!r}: the {split} split has {s.documents} documents "
                    f"with {s.tokens} tokens, and one row needs {self.row_tokens} (documents: "
                    f"{counts}, left out: {dict(self.source.skipped) or 'none'}). Give more "
                    "documents, change --val-share, or shorten the context"
                )

    def disk_error(self, error: OSError) -> UserError:
        if error.errno == errno.ENOSPC:
            kept = self.work.exists()
            note = f"finished parts are kept in {self.work}; " if kept else ""
            return UserError(
                f"{self.root}: the disk is full while preparing {self.source.name}; nothing "
                f"unfinished is left under its final name. {note}free space, or give another "
                "folder, and run the same command again"
            )
        return UserError(
            f"{error.filename or self.root}: cannot prepare {self.source.name} there "
            f"({error.strerror or error}); give a folder that can be written, or fix the cause"
        )


def _digest(settings: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
