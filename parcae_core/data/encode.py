"""Documents to token ids, many at a time, in order.

Batches are cut by the text alone and come back in its order, so the number of threads never shows.
With a cache folder each finished batch is kept, and an interrupted pass goes on from there.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parcae_core.data.corpus import SPLITS, Split
from parcae_core.data.tokenizer import Tokenizer, id_dtype

BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Consecutive documents, n in all.

    Attributes:
        is_val: (n,) uint8.
        digests: (n, 32) uint8, sha256 of each text.
        text_lengths: (n,) int64, UTF-8 bytes.
        id_lengths: (n,) int64.
        ids: ids of all documents, one after the other, without BOS.
    """

    is_val: np.ndarray
    digests: np.ndarray
    text_lengths: np.ndarray
    id_lengths: np.ndarray
    ids: np.ndarray

    @property
    def text_bytes(self) -> int:
        return int(self.text_lengths.sum())

    def documents(self) -> Iterator[tuple[Split, bytes, int, np.ndarray]]:
        """(split, sha256 of the text, UTF-8 bytes, ids) of each document."""
        ends = np.cumsum(self.id_lengths)
        for i, end in enumerate(ends):
            ids = self.ids[end - self.id_lengths[i] : end]
            yield SPLITS[self.is_val[i]], self.digests[i].tobytes(), int(self.text_lengths[i]), ids


def encode_stream(
    stream: Iterable[tuple[Split, str]],
    tokenizer: Tokenizer,
    *,
    workers: int,
    cache: Path | None = None,
) -> Iterator[EncodedBatch]:
    """Encode documents in threads; the tokenizers release the GIL while they work.

    Args:
        cache: folder for finished batches. A batch found there is used if the text it was made
            from is, by hash, the text that comes now.
    """
    if cache is not None:
        cache.mkdir(exist_ok=True)
    waiting: deque[Future[EncodedBatch]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, texts in enumerate(_batches(stream)):
                path = None if cache is None else cache / f"{number:07d}.npz"
                waiting.append(pool.submit(_encode, texts, tokenizer, path))
                # Bounds the memory, and keeps every thread busy while the oldest is written out.
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(stream: Iterable[tuple[Split, str]]) -> Iterator[list[tuple[Split, str]]]:
    batch: list[tuple[Split, str]] = []
    size = 0
    for split, text in stream:
        batch.append((split, text))
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(
    texts: list[tuple[Split, str]], tokenizer: Tokenizer, path: Path | None
) -> EncodedBatch:
    encoded = [text.encode() for _, text in texts]
    digests = np.frombuffer(b"".join(hashlib.sha256(t).digest() for t in encoded), np.uint8)
    digests = digests.reshape(len(texts), 32)
    is_val = np.array([split == "val" for split, _ in texts], np.uint8)
    if path is not None and (known := _load(path)) is not None:
        same_text = np.array_equal(known.digests, digests)
        if same_text and np.array_equal(known.is_val, is_val):
            return known
    ids = [tokenizer.encode(text) for _, text in texts]
    batch = EncodedBatch(
        is_val=is_val,
        digests=digests,
        text_lengths=np.array([len(t) for t in encoded], np.int64),
        id_lengths=np.array([len(i) for i in ids], np.int64),
        ids=np.concatenate(ids).astype(id_dtype(tokenizer.vocab_size)),
    )
    if path is not None:
        _save(path, batch)
    return batch


def _save(path: Path, batch: EncodedBatch) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **{name: getattr(batch, name) for name in EncodedBatch.__slots__})
    temporary.replace(path)


def _load(path: Path) -> EncodedBatch | None:
    """A kept batch; None if there is none, or if a crash of the machine left it damaged."""
    try:
        with np.load(path) as stored:
            return EncodedBatch(**{name: stored[name] for name in EncodedBatch.__slots__})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink()
        return None
