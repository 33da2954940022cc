"""What a corpus is: documents, the split each belongs to, a fingerprint, and the source of all.

Free of torch and quick, because every plan resolves its corpus. A source yields its documents in
one fixed order, each already in its split; its fingerprint is a function of that text alone.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Literal

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

DEFAULT_VAL_SHARE = 1 / 12
# Below this many documents a share may select none by chance; above it the chance is under 1e-7
# at the default share, and holding the documents back costs nothing.
GUARANTEE_UP_TO = 200


class Fingerprint:
    """sha256 over the documents in corpus order, train and val interleaved as they come.

    Each document adds 33 bytes: `t` or `v` for its split, then the sha256 of its UTF-8 text. Names
    do not enter, so a moved or renamed corpus keeps its fingerprint as long as order, split and
    text are the same.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add_digest(self, split: Split, digest: bytes) -> None:
        self._sha.update(split[:1].encode() + digest)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


class Source(ABC):
    """Documents in a fixed order with a fixed split.

    Attributes:
        name: a label for people; not part of any identity.
        is_quick: whether the whole text may be read just to know its fingerprint.
        total_bytes: size on disk of what `stream` reads, for progress; None if unknown.
        train_bytes: UTF-8 bytes of the train split's text, counted with the fingerprint.
        alphabet: characters of a corpus that brings a vocabulary of its own; None for text.
        skipped: reason -> files or documents left out, counted by the latest full pass.
    """

    name: str
    is_quick: bool = True
    total_bytes: int | None = None
    train_bytes: int | None = None
    alphabet: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def stream(self) -> Iterator[tuple[Split, str]]:
        """The text of every document with its split, in corpus order; the same at each call."""

    @property
    def work_key(self) -> str:
        """Identifies unfinished work on this source across processes; cheap to compute."""
        return self.fingerprint

    def check_unchanged(self) -> None:  # noqa: B027 - most sources cannot change
        """Raise UserError if the files were changed since the source was opened."""

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; see `Fingerprint`."""
        fingerprint, train_bytes = Fingerprint(), 0
        for split, text in self.stream():
            data = text.encode()
            fingerprint.add_digest(split, hashlib.sha256(data).digest())
            train_bytes += len(data) * (split == "train")
        self.train_bytes = train_bytes
        return fingerprint.hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        """The texts of one split, in corpus order."""
        return (text for s, text in self.stream() if s == split)


def split_by_text(texts: Iterable[str], val_share: float) -> Iterator[tuple[Split, str]]:
    """Assign splits by the hash of the text, so that two copies never straddle the split.

    A document is validation when the first 8 bytes of the sha256 of its text, as a big-endian
    fraction of 2^64, lie below `val_share`. If a corpus of at least two and fewer than
    `GUARANTEE_UP_TO` documents has none, the one with the lowest hash is validation.
    """
    keyed = ((hash64(text.encode()), text) for text in texts)
    held = list(islice(keyed, GUARANTEE_UP_TO))
    threshold, keys = int(val_share * 2**64), {key for key, _ in held}
    if len(held) < GUARANTEE_UP_TO and len(keys) > 1:
        threshold = max(threshold, min(keys) + 1)
    for key, text in chain(held, keyed):
        yield ("val" if key < threshold else "train", text)


def hash64(data: bytes) -> int:
    """The first 8 bytes of the sha256, big-endian."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
