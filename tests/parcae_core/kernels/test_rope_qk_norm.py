"""Rotary positions and QK-norm in one pass against the definition, and against cos and sin."""

import pytest
import torch

from parcae_core.kernels.dispatch import head_rows
from parcae_core.kernels.rope_qk_norm import rope_qk_norm, rope_qk_norm_ref, rotate
from parcae_core.model.layers import Rotary
from tests.support.kernel_accuracy import DTYPES, check, normal, run
from tests.support.plain_forward import rotate as rotate_by_angles


# batch, time, query heads, key heads, head width
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 2), (2, 63, 3, 1, 50), (3, 32, 4, 2, 64), (1, 5, 2, 1, 128)], ids=str
)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "turn-only"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients(shape, norm, dtype, device, poison_empty):
    b, t, heads, kv_heads, k = shape
    turn = Rotary(k, t + 3, 50_000.0).turn.to(device)
    check(
        lambda *a: rope_qk_norm(*a, turn, norm=norm, eps=1e-6, impl="triton"),
        lambda *a: rope_qk_norm_ref(*a, turn, norm, 1e-6),
        [normal(b, t, heads, k, seed=0), normal(b, t, kv_heads, k, seed=1)],
        "q k dq dk",
        dtype,
        device,
    )


@pytest.mark.parametrize("k", [8, 64], ids=["x kept", "y kept"])
def test_parts_of_wider_rows_are_read_where_they_are(k, device):
    """As one product for q, k and v hands them on; nothing is copied first."""
    turn = Rotary(k, 7, 50_000.0).turn.to(device)
    wide = normal(2, 7, 6 * k, seed=0).to(device, torch.float32)

    def parts(x):
        q, key, _ = x.split((3 * k, 2 * k, k), -1)
        return q.unflatten(-1, (3, k)), key.unflatten(-1, (2, k))

    assert [head_rows(t)[0].data_ptr() for t in parts(wide)] == [t.data_ptr() for t in parts(wide)]
    found = [
        run(lambda x, impl=impl: rope_qk_norm(*parts(x), turn, eps=1e-6, impl=impl), [wide])
        for impl in ("triton", "torch")
    ]
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_definition_is_the_rotation_by_cos_and_sin():
    x = normal(1, 7, 2, 6, seed=0)
    turn = Rotary(6, 7, 50_000.0).turn
    assert torch.allclose(rotate(x, turn)[0], rotate_by_angles(x[0], 50_000.0), atol=1e-12)


def complex_products(x, turn):
    """The other way to write a rotation, (B, T, H, K)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    turned = pairs * torch.view_as_complex(turn)[: x.shape[1], None]
    return torch.view_as_real(turned).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_real_products_equal_complex_ones(dtype, monkeypatch):
    """To the last bit on a CPU: what runs there and what is compiled are the same numbers."""
    x, dy = (normal(2, 33, 3, 64, seed=s).to(dtype) for s in (0, 1))
    turn = Rotary(64, 40, 50_000.0).turn
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = []
    for way in (rotate, complex_products):
        leaf = x.clone().requires_grad_()
        way(leaf, turn).backward(dy)
        found.append((way(x, turn), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch's own code
def test_the_compiled_definition_is_one_fused_kernel():
    from torch._inductor.utils import run_and_get_code

    q, turn = normal(2, 16, 2, 8, seed=0).bfloat16(), Rotary(8, 16, 50_000.0).turn
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k: rope_qk_norm_ref(q, k, turn, True, None))
    _, code = run_and_get_code(compiled, q, q)
    assert "view_as_complex" not in "".join(code)
    assert "extern_kernels" not in "".join(code).split("def call")[-1]


def test_the_default_epsilon_is_float32s(device):
    """Half-precision rows of 1e-4: a half's own epsilon, 1e-3, would leave nothing of them."""
    q = torch.full((1, 1, 1, 4), 1e-4, device=device, dtype=torch.float16)
    turn = Rotary(4, 1, 50_000.0).turn.to(device)
    for impl in ("torch", "triton"):
        y, _ = rope_qk_norm(q, q, turn, impl=impl)
        assert y[0, 0, 0, 0].item() == pytest.approx(1e-4 / (1e-8 + 1.2e-7) ** 0.5, rel=0.01)


def test_shapes_that_disagree_are_named():
    turn = Rotary(4, 2, 50_000.0).turn
    q = torch.zeros(1, 3, 2, 4)
    with pytest.raises(ValueError, match=r"turn \(2, 2, 2\) \(>= T, K/2, 2\)"):
        rope_qk_norm(q, q, turn)
