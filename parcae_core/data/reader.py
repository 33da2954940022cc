"""Rows of prepared data as batches; what a batch holds is a function of its step alone.

Nothing is remembered between calls, so resuming, another number of ranks, or reading ahead in a
thread can never change the order of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parcae_core import seeds
from parcae_core.data.corpus import SPLITS, Split
from parcae_core.data.manifest import check_sizes, read_manifest
from parcae_core.data.permutation import permute
from parcae_core.data.state_reveals import StateRevealRows, StateReveals
from parcae_core.errors import UserError


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one step.

    Attributes:
        ids: (n, row_tokens) int64; the first id of a row is BOS.
        epoch: passes over the split completed before the batch's last row; data is being repeated
            when it is 1 or more.
    """

    ids: np.ndarray
    epoch: int


class RowReader:
    """Rows of one split of a prepared folder: memory-mapped, or drawn while they are read.

    Attributes:
        manifest: of the folder.
        n_rows, row_tokens: shape of the split.
        token_bytes: (vocab_size,) int32, UTF-8 bytes each id stands for; 0 for specials.
        generator: of a corpus that is drawn while it is read, None for text.
    """

    def __init__(self, path: Path, split: Split, *, data_seed: int) -> None:
        """Open and check against the manifest, by size.

        Raises:
            UserError: if the folder is not prepared data, a shard is truncated or missing, or the
                split has no rows.
        """
        if split not in SPLITS:
            raise UserError(f"split {split!r}: needed one of {', '.join(SPLITS)}")
        path = Path(path)
        self.manifest = read_manifest(path)
        check_sizes(path, self.manifest)
        self.split = split
        self.data_seed = data_seed
        self.row_tokens = self.manifest.row_tokens
        self.n_rows = self.manifest.splits[split].rows
        if self.n_rows < 1:
            raise UserError(f"{path}: its {split} split has no rows; prepare it with more text")
        self.token_bytes = _token_bytes(path, self.manifest.tokenizer.vocab_size)
        self.generator = None
        if (generated := self.manifest.generated) is not None:
            self.generator = StateReveals.named(generated.corpus)
            # An order has its own stream, so every seed draws other rows; validation is one for all
            stream = (0, data_seed) if split == "train" else (1,)
            bos_id = self.manifest.tokenizer.bos_id
            self._rows = StateRevealRows(self.generator, self.row_tokens, bos_id, stream)
            return
        self._rows = np.memmap(
            path / self.manifest.splits[split].file,
            dtype=np.dtype(self.manifest.dtype).newbyteorder("<"),
            mode="r",
            shape=(self.n_rows, self.row_tokens),
        )

    def batch(self, step: int, n: int) -> Batch:
        """The rows of one step: n consecutive places of the endless, per-epoch shuffled order.

        Args:
            step: >= 0; step s reads places s * n to (s + 1) * n, across an epoch's end if need be.
            n: rows in the global batch.
        """
        if step < 0 or n < 1:
            raise ValueError(f"step={step} must be >= 0 and n={n} >= 1")
        first = step * n
        places = first + np.arange(n)
        if self.generator is not None:
            return Batch(self._rows[places].astype(np.int64), 0)
        rows = np.empty(len(places), np.int64)
        epochs = places // self.n_rows
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = f"{seeds.ROW_ORDER}/{self.data_seed}/{epoch}"
            rows[here] = permute(places[here] % self.n_rows, self.n_rows, key)
        return Batch(self._known(self._rows[rows]), (first + n - 1) // self.n_rows)

    def rows(self, start: int, n: int) -> np.ndarray:
        """(n, row_tokens) int64, in stored order; for validation, where every run reads the same.

        Raises:
            UserError: if the split has fewer than start + n rows.
        """
        if start < 0 or n < 1 or start + n > self.n_rows:
            raise UserError(
                f"{self.manifest.data_id}: rows {start} to {start + n} asked for, and the "
                f"{self.split} split has {self.n_rows}; ask for fewer or give more text"
            )
        return self._known(self._rows[np.arange(start, start + n)])

    def _known(self, ids: np.ndarray) -> np.ndarray:
        """The ids as int64.

        Raises:
            UserError: for one outside the vocabulary, which would read past the model's tables.
        """
        if (highest := int(ids.max(initial=0))) >= len(self.token_bytes):
            raise UserError(
                f"{self.manifest.data_id}: the {self.split} split holds the id {highest}, and its "
                f"tokenizer has {len(self.token_bytes)}. Delete the folder and prepare it again"
            )
        return ids.astype(np.int64)

    def labels(self, rows: np.ndarray) -> np.ndarray | None:
        """(n, context) int64, a class of every target by which to tell losses apart; 0: none.

        None for a corpus that has no such classes. Those of state-reveals are the gaps.
        """
        return None if self.generator is None else self.generator.gaps(rows)


def _token_bytes(path: Path, vocab_size: int) -> np.ndarray:
    file = path / "token_bytes.npy"
    try:
        # Mapped first, so that a header cannot ask for more memory than the file is long
        table = np.load(file, mmap_mode="r")
    except Exception as error:  # numpy evaluates the header, which can fail in many ways
        raise UserError(
            f"{file}: cannot read it ({error}). Delete the folder and prepare it again"
        ) from error
    shape = getattr(table, "shape", None)
    if shape != (vocab_size,) or table.dtype.kind not in "iu" or (table < 0).any():
        raise UserError(
            f"{file}: shape {shape}, and the manifest's tokenizer has {vocab_size} ids, each of so "
            "many bytes. Delete the folder and prepare it again"
        )
    return np.array(table)
