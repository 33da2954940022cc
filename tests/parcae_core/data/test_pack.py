"""Packing: nothing invented, rows full, crops counted, and the same as a plain scan of the buffer."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcae_core.data.pack import Packer

BOS = 60_000
# Lengths around the row's, where the cases differ; ids name (document, position) so that a token
# in a row can be traced to where it came from.
documents = st.lists(st.integers(0, 40), max_size=60).map(
    lambda lengths: [np.arange(n) + 100 * i for i, n in enumerate(lengths)]
)
settings = {
    "row_tokens": st.integers(2, 20),
    "mode": st.sampled_from(["cut", "crop"]),
    "buffer": st.integers(1, 12),
}


def pack(docs, row_tokens, mode, buffer):
    packer = Packer(row_tokens, bos_id=BOS, long_documents=mode, buffer_pieces=buffer)
    rows = [packer.add(d) for d in docs]
    return np.concatenate([*rows, packer.finish()]), packer.counts


def pieces_of(rows):
    """The runs between BOS ids, as tuples."""
    for row in rows.tolist():
        starts = [i for i, t in enumerate(row) if t == BOS]
        for a, b in zip(starts, [*starts[1:], len(row)], strict=True):
            yield tuple(row[a + 1 : b])


@given(docs=documents, **settings)
def test_every_token_comes_from_a_document_at_most_once(docs, row_tokens, mode, buffer):
    rows, _ = pack(docs, row_tokens, mode, buffer)
    available = Counter(int(t) for d in docs for t in d)
    used = Counter(t for t in rows.ravel().tolist() if t != BOS)
    assert all(used[t] <= available[t] for t in used)


@given(docs=documents, **settings)
def test_rows_start_with_bos_and_hold_unbroken_runs(docs, row_tokens, mode, buffer):
    rows, counts = pack(docs, row_tokens, mode, buffer)
    assert rows.shape == (counts.rows, row_tokens)
    assert (rows[:, 0] == BOS).all()
    for piece in pieces_of(rows):
        assert list(piece) == [piece[0] + k for k in range(len(piece))] if piece else True


@given(docs=documents, **settings)
def test_cropped_tokens_are_counted_exactly(docs, row_tokens, mode, buffer):
    rows, counts = pack(docs, row_tokens, mode, buffer)
    assert counts.documents == len(docs)
    assert counts.tokens == rows.size + counts.cropped_tokens
    assert counts.tokens == sum(map(len, docs)) + counts.pieces


@given(docs=documents, row_tokens=st.integers(2, 20), buffer=st.integers(1, 12))
def test_cutting_never_loses_a_whole_row_of_a_long_document(docs, row_tokens, buffer):
    rows, _ = pack(docs, row_tokens, "cut", buffer)
    whole = set(pieces_of(rows))
    body = row_tokens - 1
    for d in docs:
        for k in range(len(d) // body):
            assert tuple(d[k * body : (k + 1) * body].tolist()) in whole


def scan_pack(docs, row_tokens, buffer_pieces):
    """The published rule written as a scan: fill the buffer, take the largest that fits (the
    oldest of equals), else crop the shortest (the newest of equals)."""
    queue = [[BOS, *d.tolist()] for d in docs if len(d)]
    buffer, rows, row = [], [], []
    while True:
        while queue and len(buffer) < buffer_pieces:
            buffer.append(queue.pop(0))
        if not buffer:
            return rows
        room = row_tokens - len(row)
        fitting = [p for p in buffer if len(p) <= room]
        piece = max(fitting, key=len) if fitting else min(reversed(buffer), key=len)
        buffer.remove(piece)
        row += piece[:room]
        if len(row) == row_tokens:
            rows.append(row)
            row = []


@given(docs=documents, row_tokens=st.integers(2, 20), buffer=st.integers(1, 12))
def test_cropping_mode_is_the_published_rule(docs, row_tokens, buffer):
    rows, _ = pack(docs, row_tokens, "crop", buffer)
    assert rows.tolist() == scan_pack(docs, row_tokens, buffer)


def test_short_contexts_keep_long_documents_only_when_they_are_cut():
    docs = [np.arange(10_000) % 50_000 for _ in range(20)]
    _, cut = pack(docs, 129, "cut", 1000)
    _, crop = pack(docs, 129, "crop", 1000)
    assert cut.cropped_tokens / cut.tokens < 0.01
    # 129 of 10,001 ids of each document survive
    assert crop.cropped_tokens / crop.tokens == pytest.approx(1 - 129 / 10_001)


def test_a_row_of_one_id_is_refused():
    with pytest.raises(ValueError, match="row_tokens is 1"):
        Packer(1, bos_id=BOS)
