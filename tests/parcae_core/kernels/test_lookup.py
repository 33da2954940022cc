"""Gradients of several tables from one sort of the tokens against the definition."""

import pytest
import torch

from parcae_core.kernels import lookup as lookup_file
from parcae_core.kernels.lookup import lookup, lookup_ref
from tests.support.kernel_accuracy import DTYPES, check, normal

# in chunks of 4 sorted tokens: one id over many chunks, over an edge, none twice, all the same
IDS = {
    "one": [0],
    "same": [3] * 14,
    "distinct": list(range(9)),
    "frequent": [1] * 3 + [2] * 4 + [5] + [7] * 10 + [9] * 2,
}


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_and_gradients(case, dtype, device, poison_empty, monkeypatch):
    monkeypatch.setattr(lookup_file, "_CHUNK", 4)
    monkeypatch.setattr(lookup_file, "_WIDTH", 16)
    numbers = torch.Generator().manual_seed(0)
    order = torch.randperm(len(IDS[case]), generator=numbers)
    ids = torch.tensor(IDS[case])[order].view(1, -1).to(device)
    tables = [normal(11, 5, seed=0), normal(11, 20, seed=1)]
    check(
        lambda *t: tuple(lookup(ids, t, impl="triton")),
        lambda *t: tuple(lookup_ref(ids, t)),
        tables,
        "rows wide_rows dtable dwide_table",
        dtype,
        device,
    )


def test_the_tokens_are_sorted_once(device, monkeypatch):
    sorts = []
    real = torch.sort
    monkeypatch.setattr(torch, "sort", lambda *a, **k: sorts.append(1) or real(*a, **k))
    tables = [torch.ones(4, w, device=device, requires_grad=True) for w in (2, 3, 4)]
    rows = lookup(torch.tensor([[3, 1, 3]], device=device), tables, impl="triton")
    sum(r.sum() for r in rows).backward()
    assert len(sorts) == 1
    assert tables[2].grad[:, 0].tolist() == [0, 1, 0, 2]


def test_tables_of_other_lengths_are_named():
    with pytest.raises(ValueError, match=r"\(3, 1\), \(4, 1\).* one number of rows"):
        lookup(torch.zeros(1, 1, dtype=torch.int64), [torch.zeros(3, 1), torch.zeros(4, 1)])
