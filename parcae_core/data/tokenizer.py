"""Text to token ids and back: bytes, byte-level BPE, a tokenizer.json, or a corpus's characters.

Importing this module and reading a name is free of torch and of the BPE libraries, because every
plan needs a vocabulary size. The special ids are the last three: bos, eos, pad.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parcae_core.errors import UserError
from parcae_core.plain import parse_json

N_BYTES = 256
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>")
CHARACTERS = "characters"
HUB = "hf:"  # before the name of a repository
BYTES_VOCAB_SIZE = N_BYTES + len(SPECIALS)
MIN_BPE_VOCAB_SIZE = BYTES_VOCAB_SIZE + 1  # at least one merge
MAX_BPE_VOCAB_SIZE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerName:
    """What a spec's tokenizer entry says, before any text is read."""

    name: str  # bytes, characters, bpe-<vocab_size>, or json-<12 digits of the file's sha256>
    kind: Literal["bytes", "characters", "bpe", "json"]
    vocab_size: int
    path: Path | None = None  # of the given tokenizer.json


class Tokenizer(ABC):
    """Encodes one text; ids are in [0, vocab_size), the specials never come out of text."""

    bos_id: int
    eos_id: int | None
    pad_id: int | None

    def __init__(self, tokens: list[bytes]) -> None:
        """Args:
        tokens: the bytes of each id but the specials, which follow them.
        """
        self._tokens = [*tokens, *(b"" for _ in SPECIALS)]
        self.vocab_size = len(self._tokens)
        self.bos_id, self.eos_id, self.pad_id = range(len(tokens), self.vocab_size)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """(n,) uint16 or uint32 ids, without BOS."""

    def decode_bytes(self, ids: np.ndarray) -> bytes:
        """The bytes the ids stand for; specials stand for none."""
        return b"".join(self._tokens[i] for i in ids if i < self.vocab_size)

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int32, the number of UTF-8 bytes each id stands for; 0 for specials."""
        return np.array([len(t) for t in self._tokens], np.int32)

    def to_json(self) -> str | None:
        """The text of tokenizer.json; None when the name says it all."""
        return None


def parse_tokenizer(name: str, alphabet: str | None = None) -> TokenizerName:
    """Read a tokenizer's name: `bytes`, `characters`, `bpe-4096`, the path of a tokenizer.json, or
    `hf:<repository>[@<revision>]` of the Hugging Face hub.

    Args:
        alphabet: of a generated corpus, whose tokenizer is `characters` and nothing else.

    Raises:
        UserError: if it is none of these, or the vocabulary size is out of range.
    """
    if (name == CHARACTERS) != (alphabet is not None):
        raise UserError(
            f"tokenizer {name!r}: a generated corpus has {CHARACTERS!r} and text has another; leave "
            "the tokenizer out, and each gets its own"
        )
    if alphabet is not None:
        n_ids = len(alphabet) + len(SPECIALS)
        return TokenizerName(name=name, kind=CHARACTERS, vocab_size=n_ids)
    if name == "bytes":
        return TokenizerName(name=name, kind="bytes", vocab_size=BYTES_VOCAB_SIZE)
    if name.startswith(HUB):
        return _parse_file(hub_file(name))
    if name.endswith(".json"):
        return _parse_file(Path(name))
    match = re.fullmatch(r"bpe-([0-9]{1,9})", name)
    if not match:
        raise UserError(
            f"tokenizer {name!r}: needed 'bytes', 'bpe-<vocab_size>' such as 'bpe-4096', the path of a "
            "tokenizer.json, or a repository of the hub such as 'hf:openai-community/gpt2'"
        )
    vocab_size = int(match[1])
    if not MIN_BPE_VOCAB_SIZE <= vocab_size <= MAX_BPE_VOCAB_SIZE or match[1].startswith("0"):
        raise UserError(
            f"tokenizer {name!r}: the vocabulary holds {N_BYTES} bytes, {len(SPECIALS)} specials "
            f"and the merges; give a size from {MIN_BPE_VOCAB_SIZE} to {MAX_BPE_VOCAB_SIZE}"
        )
    return TokenizerName(name=name, kind="bpe", vocab_size=vocab_size)


def hub_file(name: str) -> Path:
    """The tokenizer.json of `hf:<repository>[@<revision>]`, fetched once and kept in the hub's cache.

    Raises:
        UserError: the hub is not reached and the cache has it not, or the repository has no such file.
    """
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(repository, "tokenizer.json", revision=revision or None))
    # of the repository, the file, the network, the disk: each has a class of its own
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tokenizer {name!r}: its tokenizer.json cannot be had ({type(error).__name__}: {reason}); "
            "check the name and the network, or give the path of a tokenizer.json"
        ) from error


def _parse_file(path: Path) -> TokenizerName:
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(
            f"tokenizer {str(path)!r}: cannot read it ({getattr(error, 'strerror', error)}); "
            f"relative paths start at {Path.cwd()}"
        ) from error
    layout = parse_layout(text, path)
    digest = hashlib.sha256(text).hexdigest()[:12]
    return TokenizerName(
        name=f"json-{digest}", kind="json", vocab_size=layout.vocab_size, path=path
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerLayout:
    """What a tokenizer.json holds, its ids and their types checked."""

    data: dict[str, Any]
    vocab: dict[str, int]
    added: dict[str, int]
    special_ids: frozenset[int]
    vocab_size: int


def parse_layout(text: bytes, path: Path) -> TokenizerLayout:
    """Check the parts of a tokenizer.json that we read ourselves.

    Raises:
        UserError: if it has no vocabulary, or ids that are not small whole numbers.
    """
    data = parse_json(text, path)
    try:
        vocab, tokens = data["model"]["vocab"], data["added_tokens"]
        added = {str(t["content"]): t["id"] for t in tokens}
        special_ids = frozenset(t["id"] for t in tokens if t["special"])
        ids = [*vocab.values(), *added.values()]
        odd = [i for i in ids if type(i) is not int or not 0 <= i < MAX_BPE_VOCAB_SIZE]
        if odd or not ids:
            raise ValueError(
                f"an id is {odd[0]!r:.40}; ids are whole numbers from 0 to {MAX_BPE_VOCAB_SIZE - 1}"
                if odd
                else "it has no ids"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a tokenizer.json with model.vocab and added_tokens ({error!r:.200}); save "
            "one with the tokenizers library, or use 'bpe-<vocab_size>' to train one"
        ) from error
    return TokenizerLayout(
        data=data, vocab=vocab, added=added, special_ids=special_ids, vocab_size=1 + max(ids)
    )


def id_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, uint32 otherwise."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255; bos 256, eos 257, pad 258."""

    def __init__(self) -> None:
        super().__init__([bytes([b]) for b in range(N_BYTES)])

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)


class CharacterTokenizer(Tokenizer):
    """The characters of a generated corpus, in its order; then bos, eos and pad."""

    def __init__(self, alphabet: str) -> None:
        super().__init__([c.encode() for c in alphabet])
        self.alphabet = alphabet

    def encode(self, text: str) -> np.ndarray:
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is not in this corpus's alphabet, which is {self.alphabet}"
            )
        return np.array([self.alphabet.index(c) for c in text], np.uint16)
