"""Carry and norm in one pass against the definition."""

import pytest
import torch

from parcae_core.kernels.loop_boundary import loop_boundary, loop_boundary_ref
from tests.support.kernel_accuracy import DTYPES, SHAPES, check, normal

EPS = 1e-5


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients(shape, dtype, device, poison_empty):
    inputs = [
        normal(*shape, seed=0),
        torch.sigmoid(normal(shape[-1], seed=1)),
        normal(*shape, seed=2),
        1 + normal(shape[-1], seed=3) / 3,
    ]
    check(
        lambda *t: loop_boundary(*t, EPS, impl="triton"),
        lambda *t: loop_boundary_ref(*t, EPS),
        inputs,
        "x normed dh da_bar dinjected dweight",
        dtype,
        device,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a_bar": torch.zeros(3)}, r"a_bar \(3,\) and weight \(4,\)"),
        ({"injected": torch.zeros(2, 4)}, r"injected \(2, 4\) must be one shape"),
        (
            {"injected": torch.zeros(1, 2, 4).half()},
            "h is torch.float32 and injected torch.float16",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    given = {
        "h": torch.zeros(1, 2, 4),
        "a_bar": torch.zeros(4),
        "injected": torch.zeros(1, 2, 4),
        "weight": torch.zeros(4),
        "eps": EPS,
    }
    with pytest.raises(ValueError, match=words):
        loop_boundary(**(given | change))
