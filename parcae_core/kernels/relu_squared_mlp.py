"""z = y V^T with y = 0.5 relu(u U^T)^2: a block's MLP, relu^2 in the epilogues of its products.

u (..., D), U (F, D), V (D, F), z (..., D); M rows. Computed in the dtype of u, sums in float32. With x = u U^T,
    dx = (dz V) relu(x),  relu(x) = sqrt(2 y),   du = dx U,  dU = dx^T u,  dV = dz^T y.
Neither x nor dy = dz V is ever written: F is the widest size of a block, and the passes over it that
the elementwise kernel makes (relu_squared.py: one read, one write, each way) go with them. Two of the
six products run in the kernel below, the others in torch's. In float16 y does not hold relu(x); there
the two stay apart, and on a GPU in float32 as well, whose products are torch's to choose.
Source: Parcae (arXiv:2604.12946), MLP; order of the tiles as in Triton's tutorial on products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from parcae_core.kernels import dispatch
from parcae_core.kernels.dispatch import Impl, tl, triton
from parcae_core.kernels.relu_squared import relu_squared, relu_squared_ref

# Of a tile of the output, and of the inner size; 8 tiles of rows share what they read of B. Compiled for
# an H100 (tests/support/compile_for_gpu.py): tensor cores fed by asynchronous copies, 252 registers, no spills.
_TILES = {"BM": 128, "BN": 256, "BK": 64, "GROUP": 8}
_COMPILED = {"num_warps": 8, "num_stages": 3}


def relu_squared_mlp_ref(u: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The definition."""
    return F.linear(relu_squared_ref(F.linear(u, up)), down)


if triton is not None:

    @triton.jit
    def _product_epilogue_kernel(
        a, b, y, out, M, N, K, B_K, B_N,
        BACK: tl.constexpr, EVEN: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    ):  # fmt: skip
        """out = 0.5 relu(a b)^2, or (a b) sqrt(2 y) with BACK; a (M, K), b (K, N) of strides B_K, B_N."""
        per_group = GROUP * tl.cdiv(N, BN)
        first = tl.program_id(0) // per_group * GROUP
        n_rows = tl.minimum(tl.cdiv(M, BM) - first, GROUP)
        inside = tl.program_id(0) % per_group
        rows = (first + inside % n_rows) * BM + tl.arange(0, BM)
        cols = inside // n_rows * BN + tl.arange(0, BN)
        inner = tl.arange(0, BK)
        # rows and columns past the end read others' numbers, and are not written
        at_a = a + (rows % M).to(tl.int64)[:, None] * K + inner[None, :]
        at_b = b + inner.to(tl.int64)[:, None] * B_K + (cols % N).to(tl.int64)[None, :] * B_N
        b_sum = tl.zeros([BM, BN], dtype=tl.float32)
        for k in range(0, K, BK):
            if EVEN:
                b_a = tl.load(at_a)
                b_b = tl.load(at_b)
            else:
                b_a = tl.load(at_a, mask=(k + inner < K)[None, :], other=0.0)
                b_b = tl.load(at_b, mask=(k + inner < K)[:, None], other=0.0)
            b_sum = tl.dot(b_a, b_b, b_sum, input_precision="ieee")
            at_a += BK
            at_b += BK * B_K
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        offs = rows.to(tl.int64)[:, None] * N + cols[None, :]
        if BACK:
            b_y = tl.load(y + offs, mask=mask, other=0.0).to(tl.float32)
            b_out = b_sum * tl.sqrt(2 * b_y)
        else:
            # what an unfused product would hand on; and a NaN stays one
            b_sum = b_sum.to(out.dtype.element_ty).to(tl.float32)
            b_sum = tl.where(b_sum < 0, 0.0, b_sum)
            b_out = 0.5 * b_sum * b_sum
        tl.store(out + offs, b_out.to(out.dtype.element_ty), mask=mask)

    @dispatch.operator
    def _relu_squared_mlp(u: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """z (M, D), and y (M, F) for the backward."""
        u, up = u.contiguous(), up.contiguous()
        y = _product(u, up, up.stride(1), up.stride(0), None, up.shape[0])
        return y @ down.T, y

    @dispatch.operator
    def _relu_squared_mlp_bwd(
        dz: Tensor, u: Tensor, y: Tensor, up: Tensor, down: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dz, down = dz.contiguous(), down.contiguous()
        dx = _product(dz, down, down.stride(0), down.stride(1), y, down.shape[1])
        return dx @ up, dx.T @ u, dz.T @ y

    def _product(
        a: Tensor, b: Tensor, b_k: int, b_n: int, y: Tensor | None, n: int
    ) -> Tensor:  # fmt: skip
        m, k = a.shape
        out = torch.empty(m, n, device=a.device, dtype=a.dtype)
        grid = (triton.cdiv(m, _TILES["BM"]) * triton.cdiv(n, _TILES["BN"]),)
        dispatch.launched(_product_epilogue_kernel)[grid](
            a, b, a if y is None else y, out, m, n, k, b_k, b_n,
            BACK=y is not None, EVEN=k % _TILES["BK"] == 0, **_TILES, **_COMPILED, **dispatch.LAUNCH,
        )  # fmt: skip
        return out

    def _keep(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)  # y has none, and zeros of its size would be a pass
        u, up, down = inputs
        ctx.save_for_backward(u, output[1], up, down)

    def _gradient(ctx, dz: Tensor, dy: None) -> tuple[Tensor, Tensor, Tensor]:
        return _relu_squared_mlp_bwd(dz, *ctx.saved_tensors)

    _relu_squared_mlp.register_autograd(_gradient, setup_context=_keep)


def relu_squared_mlp(u: Tensor, up: Tensor, down: Tensor, *, impl: Impl = "auto") -> Tensor:
    """0.5 relu(u up^T)^2 down^T, (..., D).

    Args:
        u: (..., D).
        up: (F, D).
        down: (D, F).

    Raises:
        ValueError: if shapes disagree, or the kernel was asked for and cannot run.
    """
    if not u.shape[-1] == up.shape[1] == down.shape[0] or up.shape[0] != down.shape[1]:
        raise ValueError(
            f"relu_squared_mlp: u {tuple(u.shape)} must be (..., D), up {tuple(up.shape)} (F, D) and "
            f"down {tuple(down.shape)} (D, F)"
        )
    if dispatch.use_triton("relu_squared_mlp", impl, u, up, down) and joins(u):
        dtype = dispatch.product_dtype(u)  # a kernel is no product to autocast
        rows, up, down = u.flatten(0, -2).to(dtype), up.to(dtype), down.to(dtype)
        return _relu_squared_mlp(rows, up, down)[0].view(u.shape)
    return F.linear(relu_squared(F.linear(u, up), impl=impl), down)


def joins(u: Tensor) -> bool:
    """Whether the products of u are made with their epilogues, where kernels run at all."""
    return dispatch.product_dtype(u) == torch.bfloat16 or (
        dispatch.INTERPRETED and u.dtype == torch.float32
    )
