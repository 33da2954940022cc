"""Byte-level BPE: training, encoding and the exchange format, tokenizer.json.

Training uses rustbpe and encoding tiktoken: both give what the `tokenizers` library gives for the
same merges, several times faster. A tokenizer.json made elsewhere is encoded by `tokenizers` itself
unless it has exactly our layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rustbpe
import tiktoken

from parcae_core.data.manifest import read_manifest
from parcae_core.data.tokenizer import (
    N_BYTES,
    SPECIALS,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    TokenizerLayout,
    id_dtype,
    parse_layout,
)
from parcae_core.errors import UserError

T = TypeVar("T")

# How GPT-4's tokenizer splits text before merging: contractions, letters with one leading mark,
# up to three digits, punctuation with its line ends, and whitespace.
# Source: the cl100k_base encoding as published with tiktoken.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Names under which other tokenizers keep their beginning-of-text token, ours first.
BOS_NAMES = (SPECIALS[0], "<|begin_of_text|>", "<|endoftext|>", "<s>", "<bos>", "[BOS]")
EOS_NAMES = (SPECIALS[1], "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]")
PAD_NAMES = (SPECIALS[2], "<|padding|>", "<pad>", "[PAD]")


# A run of a million blanks overflows the regex engine's stack; see `segments`.
SEGMENT_CHARS = 1 << 17
# One "word" of this many letters, blanks or marks is no language. Left in, a single such document
# would fill the vocabulary with ever longer repeats of itself.
MAX_RUN_CHARS = 256
_LONG_RUN = re.compile(r"[^\W\d_]{N,}|\s{N,}|(?:[^\w\s]|_){N,}".replace("N", str(MAX_RUN_CHARS)))
_LONG_BLANK = re.compile(r"\s{N,}".replace("N", str(MAX_RUN_CHARS)))


def segments(text: str) -> Iterator[str]:
    """Cut a huge document into parts that can be encoded one by one, at most SEGMENT_CHARS long.

    The cut falls before a space that follows a visible character, or else after a line end that a
    visible character follows: the split pattern never matches across either, so the ids are those
    of the whole text. Only a document with no such place in 131,072 characters is cut elsewhere.
    """
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        end = start + SEGMENT_CHARS
        cut = text.rfind(" ", start + 1, end)
        while cut > 0 and text[cut - 1].isspace():
            cut = text.rfind(" ", start + 1, cut)
        if cut < 0:
            cut = text.rfind("\n", start, end) + 1
            while cut > 0 and text[cut].isspace():
                cut = text.rfind("\n", start, cut - 1) + 1
        if cut > start:
            end = cut
        yield text[start:end]
        start = end
    yield text[start:]


def without_long_runs(text: str) -> str:
    """Each run of more than MAX_RUN_CHARS letters, blanks or marks replaced by one blank."""
    # Nearly no text has one, and this tells so several times faster than the whole pattern.
    longest = max(map(len, text.split()), default=0)
    if longest < MAX_RUN_CHARS and not _LONG_BLANK.search(text):
        return text
    return _LONG_RUN.sub(" ", text)


class BpeTokenizer(Tokenizer):
    """Byte-level BPE with ids: 256 bytes, merges in the order learned, bos, eos, pad."""

    def __init__(self, tokens: list[bytes], text: str | None = None) -> None:
        """Args:
        tokens: the bytes of each id, specials left out; the first 256 are the single bytes.
        text: the tokenizer.json they were read from.
        """
        super().__init__(tokens)
        self._text = text
        self._dtype = id_dtype(self.vocab_size)
        self._encoding = tiktoken.Encoding(
            f"bpe-{self.vocab_size}",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        )

    def encode(self, text: str) -> np.ndarray:
        # Releases the GIL, so threads scale; no specials are registered, so "<|bos|>" in a text
        # is plain characters.
        parts = [self._encoding.encode_to_numpy(s, disallowed_special=()) for s in segments(text)]
        return np.concatenate(parts, dtype=self._dtype)

    def to_json(self) -> str:
        if self._text is None:
            data = _to_tokenizer_json(self._tokens[: self.bos_id])
            self._text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        return self._text


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Learn merges; the same texts give the same tokenizer.

    Args:
        texts: documents of the train split; runs longer than MAX_RUN_CHARS are left out.
        vocab_size: ids in all: 256 bytes, the merges, three specials.

    Raises:
        UserError: if the text is too small to yield that many merges.
    """
    trainer = rustbpe.Tokenizer()
    pieces = (without_long_runs(segment) for text in texts for segment in segments(text))
    trainer.train_from_iterator(pieces, vocab_size - len(SPECIALS), pattern=SPLIT_PATTERN)
    tokens = [
        bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda t: t[1])
    ]
    if len(tokens) + len(SPECIALS) < vocab_size:
        raise UserError(
            f"tokenizer 'bpe-{vocab_size}': the train split is too small, it yields only "
            f"{len(tokens) - N_BYTES} merges; use 'bpe-{len(tokens) + len(SPECIALS)}' or smaller, "
            "'bytes', or more text"
        )
    return BpeTokenizer(tokens)


class JsonTokenizer(Tokenizer):
    """A byte-level tokenizer.json from elsewhere, encoded by the `tokenizers` library."""

    def __init__(self, path: Path, layout: TokenizerLayout, text: str) -> None:
        from tokenizers import Tokenizer as HfTokenizer

        self._path, self._text = path, text
        self._hf = _guarded(path, lambda: HfTokenizer.from_str(text))
        # Text that spells out a special token is text, not that token.
        self._hf.encode_special_tokens = True
        added, special_ids = layout.added, layout.special_ids
        self.vocab_size = layout.vocab_size
        bos_id = _first_of(BOS_NAMES, added)
        if bos_id is None:
            raise UserError(
                f"{path}: no beginning-of-text token; its special tokens are "
                f"{sorted(added) or 'none'} and one of {', '.join(BOS_NAMES)} is needed"
            )
        self.bos_id: int = bos_id
        self.eos_id = _first_of(EOS_NAMES, added)
        self.pad_id = _first_of(PAD_NAMES, added)
        self._dtype = id_dtype(self.vocab_size)
        self._tokens: list[bytes] = [b""] * self.vocab_size
        for token, i in layout.vocab.items():
            if i not in special_ids:
                self._tokens[i] = _visible_to_bytes(token)
        for token, i in added.items():
            if i not in special_ids:
                self._tokens[i] = token.encode()

    def encode(self, text: str) -> np.ndarray:
        parts = [_guarded(self._path, partial(self._encode, s)) for s in segments(text)]
        return np.concatenate([np.array(ids, self._dtype) for ids in parts])

    def _encode(self, text: str) -> list[int]:
        ids = self._hf.encode(text, add_special_tokens=False).ids
        if ids and max(ids) >= self.vocab_size:
            raise ValueError(f"the id {max(ids)} is outside its own vocabulary")
        return ids

    def to_json(self) -> str:
        return self._text


def load_json(path: Path) -> Tokenizer:
    """A tokenizer from tokenizer.json; ours run fast, others through the `tokenizers` library.

    Raises:
        UserError: if it is damaged, not byte-level (then bytes per token are not defined), changes
            the text before encoding, or has no beginning-of-text token.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read a tokenizer from it ({error!r:.200})") from error
    layout = parse_layout(raw, path)
    names = sorted(layout.vocab, key=layout.vocab.__getitem__)
    if _is_ours(layout.data, names):
        tokens = [_visible_to_bytes(name) for name in names[: -len(SPECIALS)]]
        return BpeTokenizer(tokens, text)
    _check_byte_level(path, layout.data)
    return JsonTokenizer(path, layout, text)


def _guarded(path: Path, call: Callable[[], T]) -> T:
    """What the tokenizers library returns; its errors, and its panics, name the file."""
    try:
        return call()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{path}: the tokenizers library cannot use it ({str(error)[:200]}); save it again with "
            "that library, or use 'bpe-<vocab_size>' to train one"
        ) from None


def load_prepared_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared folder, for decoding rows and encoding prompts.

    Raises:
        UserError: if the folder's tokenizer.json is damaged.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        return load_json(path)
    alphabet = read_manifest(folder).tokenizer.alphabet
    return ByteTokenizer() if alphabet is None else CharacterTokenizer(alphabet)


def standalone_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json for any of our tokenizers, which begins each text with BOS.

    Rows of training begin so, and another program knows only what the file says.
    """
    if (text := tokenizer.to_json()) is not None:
        data = json.loads(text)
    elif isinstance(tokenizer, CharacterTokenizer):
        data = _layout(list(tokenizer.alphabet), [])
        data |= {"pre_tokenizer": None, "decoder": {"type": "Fuse"}}
    else:
        data = _layout(_BYTE_TO_CHAR, [])
    bos = next(t["content"] for t in data["added_tokens"] if t["id"] == tokenizer.bos_id)
    begin, single = {"id": bos, "type_id": 0}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": begin}, single],
        "pair": [{"SpecialToken": begin}, single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
    before = data.get("post_processor")
    data["post_processor"] = (
        {"type": "Sequence", "processors": [before, template]} if before else template
    )
    return data


def _is_ours(data: dict[str, Any], names: list[str]) -> bool:
    """Whether it has the layout of `_to_tokenizer_json`, so that BpeTokenizer gives its ids."""
    n_plain = len(names) - len(SPECIALS)
    if n_plain <= N_BYTES or tuple(names[n_plain:]) != SPECIALS or names[:N_BYTES] != _BYTE_TO_CHAR:
        return False
    merges = data["model"].get("merges")
    if not isinstance(merges, list) or not all(
        isinstance(m, list) and len(m) == 2 and all(isinstance(part, str) for part in m)
        for m in merges
    ):
        return False  # the format of older versions, "a b"
    merged = [a + b for a, b in merges]
    return merged == names[N_BYTES:n_plain] and data == _layout(names[:n_plain], merges)


def _check_byte_level(path: Path, data: dict[str, Any]) -> None:
    pre = data.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else [pre]
    if not isinstance(parts, list) or not all(isinstance(p, dict) for p in parts):
        raise UserError(f"{path}: pre_tokenizer is not as the tokenizers library writes it")
    byte_level = [p for p in parts if p.get("type") == "ByteLevel"]
    if data["model"].get("type") != "BPE" or not byte_level:
        raise UserError(
            f"{path}: a {data['model'].get('type')} model with pre-tokenizer "
            f"{[p.get('type') for p in parts]}; a byte-level BPE is needed, because losses are "
            "reported in bits per byte"
        )
    if data.get("normalizer") or any(p.get("add_prefix_space") for p in byte_level):
        raise UserError(
            f"{path}: it changes the text before encoding (normalizer or add_prefix_space), so "
            "bits per byte would not refer to the corpus; export it without"
        )


def _first_of(names: Iterable[str], ids: dict[str, int]) -> int | None:
    return next((ids[name] for name in names if name in ids), None)


def _byte_alphabet() -> list[str]:
    """The visible character that stands for each byte in tokenizer.json.

    Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100 in order. This is
    the ByteLevel convention of GPT-2, which the format requires.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(N_BYTES)]


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {c: b for b, c in enumerate(_BYTE_TO_CHAR)}


def _visible(token: bytes) -> str:
    return "".join(_BYTE_TO_CHAR[b] for b in token)


def _visible_to_bytes(name: str) -> bytes:
    # Characters outside the alphabet occur only in tokens that no merge can reach.
    return b"".join(bytes([_CHAR_TO_BYTE[c]]) if c in _CHAR_TO_BYTE else c.encode() for c in name)


def _to_tokenizer_json(tokens: list[bytes]) -> dict[str, Any]:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [[_visible(part) for part in _parents(token, ranks)] for token in tokens[N_BYTES:]]
    return _layout([_visible(token) for token in tokens], merges)


def _layout(names: list[str], merges: list[list[str]]) -> dict[str, Any]:
    """The content of tokenizer.json, as the tokenizers library reads it."""
    vocab = {name: rank for rank, name in enumerate([*names, *SPECIALS])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {"pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[name], "content": name, **flags, "special": True} for name in SPECIALS
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", **split}, {**byte_level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _parents(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens a token was merged from: its encoding by the merges learned before it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts
