"""What a share of a GPU leaves for its neighbours."""

import pytest

from parcae_core.device import memory_fraction

GIB = 1 << 30


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_processes_and_their_contexts_fit_on_a_card_together(n):
    total = 80 * GIB
    tensors = memory_fraction(1 / n, total) * total
    assert n * (tensors + 0.75 * GIB) <= total
    assert tensors >= total / n - GIB


def test_a_share_of_a_small_card_keeps_half_of_itself():
    assert memory_fraction(0.25, 4 * GIB) == 0.125
