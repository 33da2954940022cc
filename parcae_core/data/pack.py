"""Best-fit packing of documents into rows of equal length, without padding.

A row starts with BOS and holds whole pieces, the largest that still fits first; when none fits, the
shortest piece at hand is cropped to fill the row. A crop is text lost, and it is counted.

Source: the published run's "BOS-aligned best-fit packing with cropping" (Parcae, arXiv:2604.12946;
buffer of 1,000 documents). Ours differs in one point, `long_documents="cut"`: a document longer than
a row is first cut into row-sized pieces, each with its own BOS. The published rule keeps only what
fits one row, which at short contexts loses nearly all of a long document.
"""

from __future__ import annotations

import os
from bisect import bisect_right, insort
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from parcae_core.data.corpus import Split
from parcae_core.data.io import file_sha256
from parcae_core.data.manifest import SplitManifest
from parcae_core.data.permutation import permute
from parcae_core.data.tokenizer import Tokenizer, id_dtype

LongDocuments = Literal["cut", "crop"]
BUFFER_PIECES = 1000

# Trials are evaluated on the first validation rows; in document order those would be one document.
VAL_ORDER_KEY = "parcae validation order 1"

# A buffer key is (length << SEQUENCE_BITS) | (LAST - arrival): one integer that sorts by length
# and, among equal lengths, puts the oldest last, where the search for the largest fit finds it.
SEQUENCE_BITS = 48
LAST = (1 << SEQUENCE_BITS) - 1


@dataclass(slots=True)
class PackCounts:
    """What went in and what came out; `tokens == rows * row_tokens + cropped_tokens` at the end."""

    documents: int = 0
    pieces: int = 0
    tokens: int = 0  # ids of all pieces, each piece's BOS included
    rows: int = 0
    cropped_tokens: int = 0


class Packer:
    """Documents in, rows out; a function of the sequence of documents alone.

    A document costs O(log buffer) to place, plus its copy: the buffer is kept sorted and searched
    by bisection, not scanned once per row.
    """

    def __init__(
        self,
        row_tokens: int,
        *,
        bos_id: int,
        dtype: np.dtype | type = np.uint16,
        long_documents: LongDocuments = "cut",
        buffer_pieces: int = BUFFER_PIECES,
    ) -> None:
        if row_tokens < 2:
            raise ValueError(
                f"row_tokens is {row_tokens}; a row needs a BOS and at least one token"
            )
        self.row_tokens = row_tokens
        self.counts = PackCounts()
        self._bos_id = bos_id
        self._dtype = np.dtype(dtype)
        self._cut = long_documents == "cut"
        self._buffer_pieces = buffer_pieces
        self._keys: list[int] = []
        self._pieces: dict[int, np.ndarray] = {}
        self._arrivals = 0
        self._row = np.empty(row_tokens, self._dtype)
        self._filled = 0

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add one document.

        Args:
            ids: (n,) token ids without BOS; an empty document is counted and adds nothing.

        Returns:
            (k, row_tokens) rows completed by it, k >= 0.
        """
        self.counts.documents += 1
        rows = []
        if self._cut:
            body = self.row_tokens - 1
            n_full = len(ids) // body
            if n_full:
                rows.append(self._full_rows(ids[: n_full * body].reshape(n_full, body)))
                ids = ids[n_full * body :]
        if len(ids):
            self._insert(ids)
        return self._stack(rows + self._placed(self._buffer_pieces - 1))

    def finish(self) -> np.ndarray:
        """(k, row_tokens) last rows; what is left of an incomplete row is cropped."""
        rows = self._placed(0)
        self.counts.cropped_tokens += self._filled
        self._filled = 0
        return self._stack(rows)

    def _stack(self, rows: list[np.ndarray]) -> np.ndarray:
        stacked = np.concatenate(rows) if rows else np.empty((0, self.row_tokens), self._dtype)
        self.counts.rows += len(stacked)
        return stacked

    def _full_rows(self, bodies: np.ndarray) -> np.ndarray:
        # Best fit would place a row-sized piece alone at the start of the next row; doing it here
        # spares long documents the buffer.
        rows = np.empty((len(bodies), self.row_tokens), self._dtype)
        rows[:, 0] = self._bos_id
        rows[:, 1:] = bodies
        self.counts.pieces += len(rows)
        self.counts.tokens += rows.size
        return rows

    def _insert(self, ids: np.ndarray) -> None:
        length = len(ids) + 1
        piece = np.empty(min(length, self.row_tokens), self._dtype)
        piece[0] = self._bos_id
        piece[1:] = ids[: len(piece) - 1]  # no row can show more of it
        insort(self._keys, length << SEQUENCE_BITS | (LAST - self._arrivals))
        self._pieces[LAST - self._arrivals] = piece
        self._arrivals += 1
        self.counts.pieces += 1
        self.counts.tokens += length

    def _placed(self, n_left: int) -> list[np.ndarray]:
        """(1, row_tokens) rows completed until so many pieces are left in the buffer."""
        rows = []
        while len(self._keys) > n_left:
            if (row := self._place_next()) is not None:
                rows.append(row[None])
        return rows

    def _place_next(self) -> np.ndarray | None:
        """Place one piece; the row if that completed it."""
        room = self.row_tokens - self._filled
        # Without a fit, index 0: the shortest piece, cropped.
        fit = max(bisect_right(self._keys, room << SEQUENCE_BITS | LAST) - 1, 0)
        key = self._keys.pop(fit)
        length = key >> SEQUENCE_BITS
        piece = self._pieces.pop(key & LAST)[:room]
        self._row[self._filled : self._filled + len(piece)] = piece
        self._filled += len(piece)
        self.counts.cropped_tokens += length - len(piece)
        if self._filled < self.row_tokens:
            return None
        self._filled = 0
        return self._row.copy()


class Shard:
    """Packs one split and writes its rows into a file of `out`."""

    def __init__(
        self,
        out: Path,
        split: Split,
        tokenizer: Tokenizer,
        row_tokens: int,
        long_documents: LongDocuments,
    ) -> None:
        self._split = split
        self._path = out / f"{split}.bin"
        self._dtype = id_dtype(tokenizer.vocab_size).newbyteorder("<")
        self._packer = Packer(
            row_tokens,
            bos_id=tokenizer.bos_id,
            dtype=self._dtype,
            long_documents=long_documents,
        )
        self._file = self._path.open("wb")
        self._text_bytes = 0

    def add(self, ids: np.ndarray, n_bytes: int) -> None:
        self._text_bytes += n_bytes
        self._file.write(self._packer.add(ids).data)

    def close(self) -> None:
        # A full disk may refuse the last buffered bytes here too; the first error is the one told.
        with suppress(OSError):
            self._file.close()

    def finish(self) -> SplitManifest:
        self._file.write(self._packer.finish().data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        counts = self._packer.counts
        if self._split == "val" and counts.rows:
            self._shuffle(counts.rows)
        return SplitManifest(
            file=self._path.name,
            text_bytes=self._text_bytes,
            sha256=file_sha256(self._path),
            **asdict(counts),
        )

    def _shuffle(self, n_rows: int) -> None:
        ordered = np.memmap(self._path, self._dtype, "r", shape=(n_rows, self._packer.row_tokens))
        shuffled = self._path.with_suffix(".shuffled")
        with shuffled.open("wb") as file:
            for start in range(0, n_rows, 4096):
                places = np.arange(start, min(start + 4096, n_rows))
                file.write(
                    np.ascontiguousarray(ordered[permute(places, n_rows, VAL_ORDER_KEY)]).data
                )
            file.flush()
            os.fsync(file.fileno())
        del ordered
        shuffled.replace(self._path)
