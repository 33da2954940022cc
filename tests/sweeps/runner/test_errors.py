"""Which failures another attempt may cure, and what a share of a GPU leaves for its neighbours."""

import pytest

from sweeps.runner.errors import environment
from sweeps.runner.trainable import memory_fraction

GIB = 1 << 30


def test_a_gpu_without_room_is_the_systems_failure_behind_whatever_wraps_it():
    cause = RuntimeError("Triton Error [CUDA]: out of memory")
    wrapped = ValueError("evaluation failed")
    wrapped.__cause__ = cause
    assert environment(wrapped) is cause
    assert environment(RuntimeError("an illegal memory access was encountered")) is None


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_processes_and_their_contexts_fit_on_a_card_together(n):
    total = 80 * GIB
    tensors = memory_fraction(1 / n, total) * total
    assert n * (tensors + 0.75 * GIB) <= total
    assert tensors >= total / n - GIB


def test_a_share_of_a_small_card_keeps_half_of_itself():
    assert memory_fraction(0.25, 4 * GIB) == 0.125
