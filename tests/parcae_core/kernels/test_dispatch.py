"""What cannot run says why and which `impl` to use; only "auto" falls back."""

import math

import pytest
import torch

from parcae_core.kernels import dispatch
from parcae_core.kernels.lookup import lookup
from parcae_core.kernels.loop_boundary import loop_boundary
from parcae_core.kernels.relu_squared import relu_squared
from parcae_core.kernels.relu_squared_mlp import relu_squared_mlp
from parcae_core.kernels.residual_norm import residual_norm
from parcae_core.kernels.rope_qk_norm import rope_qk_norm
from parcae_core.kernels.value_gate import value_gate

# each op, on zeros of one dtype
OPS = {
    "relu_squared": lambda z, impl: relu_squared(z(2, 3), impl=impl),
    "residual_norm": lambda z, impl: residual_norm(z(2, 3), z(2, 3), z(3), 1e-5, impl=impl),
    "loop_boundary": lambda z, impl: loop_boundary(
        z(1, 2, 3), z(3), z(1, 2, 3), z(3), 1e-5, impl=impl
    ),
    "lookup": lambda z, impl: lookup(
        torch.zeros(1, 2, dtype=torch.int64, device=z(1).device), [z(3, 2), z(3, 4)], impl=impl
    ),
    "relu_squared_mlp": lambda z, impl: relu_squared_mlp(z(2, 3), z(4, 3), z(3, 4), impl=impl),
    "value_gate": lambda z, impl: value_gate(z(1, 2, 1, 4), z(1, 2, 1), z(1, 2, 4), impl=impl),
    "rope_qk_norm": lambda z, impl: rope_qk_norm(
        z(1, 2, 1, 4), z(1, 2, 1, 4), z(2, 2, 2), impl=impl
    ),
}


def zeros(dtype, device="cpu"):
    return lambda *shape: torch.zeros(shape, dtype=dtype, device=device)


@pytest.mark.parametrize("op", OPS)
def test_a_cpu_without_the_interpreter(op, monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(ValueError, match=rf"^{op}: .* CUDA device .* on cpu; use impl='torch'"):
        OPS[op](zeros(torch.float32), "triton")
    OPS[op](zeros(torch.float32), "auto")


@pytest.mark.parametrize("op", OPS)
def test_a_dtype_without_a_kernel(op, device):
    with pytest.raises(ValueError, match=rf"^{op}: .* a tensor is float64; use impl='torch'"):
        OPS[op](zeros(torch.float64, device), "triton")
    OPS[op](zeros(torch.float64, device), "auto")


@pytest.mark.parametrize("op", OPS)
def test_an_unknown_impl(op):
    with pytest.raises(ValueError, match=rf"^{op}: impl is 'cuda'; it must be one of 'auto', "):
        OPS[op](zeros(torch.float32), "cuda")


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    monkeypatch.setattr(dispatch, "triton", None)
    with pytest.raises(ValueError, match=r"package triton .* use impl='torch'"):
        relu_squared(torch.zeros(2), impl="triton")


def test_rows_too_wide_for_a_program(device):
    x = torch.zeros(1, 2049, device=device)
    with pytest.raises(ValueError, match="at most 2048 channels and these have 2049; use"):
        residual_norm(x, x, x[0], 1e-5, impl="triton")
    residual_norm(x, x, x[0], 1e-5)


def test_nothing_to_do(device):
    with pytest.raises(ValueError, match=r"shape \(0, 3\); use impl='torch'"):
        relu_squared(torch.zeros(0, 3, device=device), impl="triton")
    assert relu_squared(torch.zeros(0, 3, device=device)).shape == (0, 3)


def test_tensors_on_two_devices(device):
    x = torch.zeros(2, 3, device=device)
    with pytest.raises(ValueError, match=r"one device and they are on c.* and meta; use"):
        residual_norm(x, x.to("meta"), x[0], 1e-5, impl="triton")


def test_a_product_reads_what_autocast_says():
    x = torch.zeros(2)
    assert dispatch.product_dtype(x) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dispatch.product_dtype(x) == torch.bfloat16


def test_partial_sums_follow_from_the_size_alone():
    assert dispatch.n_programs(torch.device("cpu"), 2) == 2
    assert dispatch.n_programs(torch.device("cpu"), 100) == 3


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # the compiler's own
@pytest.mark.parametrize("op", OPS)
def test_the_compiler_sees_each_op_whole(op, device):
    """No break in the graph, outputs as without it, and gradients through the registered backward."""
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    ones = lambda *shape: torch.ones(shape, device=device, requires_grad=True)  # noqa: E731

    def call(x):
        out = OPS[op](lambda *shape: x[: math.prod(shape)].view(shape), "triton")
        return sum(t.sum() for t in (out if isinstance(out, (tuple, list)) else (out,)))

    names = []

    def seen(graph, _):
        names.extend(str(n.target) for n in graph.graph.nodes)
        return graph

    x, y = ones(64), ones(64)
    compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=seen))
    assert torch.allclose(compiled(x), call(y))
    compiled(x).backward()
    call(y).backward()
    assert torch.allclose(x.grad, y.grad)
    wanted = "parcae" if dispatch.INTERPRETED else "triton"
    assert any(wanted in name for name in names), names
