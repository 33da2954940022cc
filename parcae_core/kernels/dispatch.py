"""Which implementation of an op runs, and why another cannot.

Every op here takes `impl`: "torch" runs anywhere, "triton" on a GPU, and "auto" takes triton where
it is the one to take, otherwise torch. Only "auto" ever falls back.
Triton's interpreter runs the kernels on a CPU for the tests: TRITON_INTERPRET=1, set before any of
these files is imported, since Triton decides when a kernel is decorated.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

Impl = Literal["auto", "torch", "triton"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
triton = tl = None
# a build for CPUs could not use it: its workers are spared the import
if INTERPRETED or torch.version.cuda or torch.version.hip:
    with contextlib.suppress(ModuleNotFoundError):  # the extra `kernels` is not installed
        triton = importlib.import_module("triton")
        tl = importlib.import_module("triton.language")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_WIDTH = 2048  # of a row that one program holds; beyond it the loop boundary's backward spills
# products and sums become one rounding; stated, because Triton 3.10 drops it as its default
LAUNCH = {"enable_fp_fusion": True}
_TILE = 4096  # elements of one tensor in a program: 32 a thread at four warps
_PROGRAMS_PER_PROCESSOR = 4
_PROGRAMS_INTERPRETED = 3  # few, so that each meets several blocks, as on a GPU


def operator(function: Callable) -> Any:
    """A function of tensors that launches kernels, as an operator `parcae::<its name>`.

    torch's compiler sees the launches inside and plans around them; under the interpreter there is
    nothing to see into, and it takes the operator as it is. The function is its own fake as well, for
    shapes alone; a forward one has its gradient registered beside it.
    """
    name = f"parcae::{function.__name__.removeprefix('_')}"
    if not INTERPRETED:
        return torch.library.triton_op(name, function, mutates_args=())
    made = torch.library.custom_op(name, function, mutates_args=())
    made.register_fake(function)
    return made


def launched(kernel: Any) -> Any:
    """A kernel as an operator's body launches it."""
    return _Interpreted(kernel) if INTERPRETED else torch.library.wrap_triton(kernel)


class _Interpreted:
    """An interpreted kernel; nothing is launched for tensors that are shapes alone."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            if not any(isinstance(a, FakeTensor) for a in arguments):
                self._kernel[grid](*arguments, **options)

        return launch


def only_real_gradients(ctx: Any, *outputs: Tensor) -> None:
    """Let a backward pass meet None instead of zeros that torch would make, a launch each.

    Args:
        outputs: those that may have a gradient; `or_zeros` fills in where one of them has none.
    """
    ctx.set_materialize_grads(False)
    ctx.empty = [(t.shape, t.dtype, t.device) for t in outputs]


def or_zeros(ctx: Any, *gradients: Tensor | None) -> list[Tensor]:
    """The gradients of `only_real_gradients`' outputs, zeros for those that nobody read."""
    return [
        torch.zeros(shape, dtype=dtype, device=device) if g is None else g
        for g, (shape, dtype, device) in zip(gradients, ctx.empty, strict=True)
    ]


class _NoContext:
    """Keeps nothing."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply`; its forward alone where no gradient is recorded.

    Same numbers. Of the small tensors of a nano model on a CPU autograd's part is about half the time.
    """
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_NoContext(), *arguments)


def check_impl(op: str, impl: str) -> None:
    """Raise ValueError unless `impl` is a known one."""
    if impl not in get_args(Impl):
        known = ", ".join(map(repr, get_args(Impl)))
        raise ValueError(f"{op}: impl is {impl!r}; it must be one of {known}")


def unavailable(device: torch.device, width: int = 1) -> str | None:
    """Why no kernel runs on a device for rows of a width, as the end of a sentence, or None."""
    if device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA device and the tensors are on {device.type}"
    if triton is None:
        return "needs the package triton (pip install 'parcae-scaling[kernels]')"
    if width > MAX_WIDTH:
        return f"takes rows of at most {MAX_WIDTH} channels and these have {width}"
    return None


def use_triton(op: str, impl: Impl, *tensors: Tensor, width: int = 1) -> bool:
    """Whether the kernel runs for these tensors.

    Args:
        op: name for messages.
        width: elements that one program must hold at once.

    Raises:
        ValueError: for an unknown `impl`, or impl="triton" where the kernel cannot run; the message
            has the reason and the `impl` to use.
    """
    if impl == "torch":
        return False
    check_impl(op, impl)
    first = tensors[0]
    # the interpreter is for who asks: it is a thousand times slower than torch
    if impl == "auto" and first.device.type != "cuda":
        return False
    problem = unavailable(first.device, width) or _misfit(tensors)
    if problem is None:
        return True
    if impl == "triton":
        raise ValueError(f"{op}: impl='triton' {problem}; use impl='torch'")
    return False


def _misfit(tensors: tuple[Tensor, ...]) -> str | None:
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        return f"needs all tensors on one device and they are on {' and '.join(devices)}"
    for t in tensors:
        if t.dtype not in DTYPES:
            return f"takes float32, float16 and bfloat16, and a tensor is {str(t.dtype)[6:]}"
        if t.numel() == 0:
            return f"needs at least one element and a tensor has shape {tuple(t.shape)}"
    return None


def row_blocks(n_rows: int, width: int, *, tensors: int = 1) -> tuple[int, int, int]:
    """(rows per block, width rounded up to a power of two, number of blocks).

    Args:
        tensors: how many such tiles a program holds at once, roughly; more make smaller blocks.
    """
    padded = triton.next_power_of_2(width)
    rows = max(1, min(triton.next_power_of_2(n_rows), _TILE // tensors // padded))
    return rows, padded, triton.cdiv(n_rows, rows)


def head_rows(x: Tensor) -> tuple[Tensor, int]:
    """x (B, T, H, K) as kernels read it, and elements from a token to the next.

    A part of each row of a wider tensor, as one product for several gives it, is read where it is.
    """
    _, T, H, K = x.shape
    token = x.stride(1)
    if x.stride() != (T * token, token, K, 1) or token < H * K:
        x, token = x.contiguous(), H * K
    return x, token


def n_programs(device: torch.device, n_blocks: int) -> int:
    """Programs that share the blocks when each leaves one partial sum.

    A function of the device alone beyond small inputs: sums are the same in every run.
    """
    if device.type != "cuda":
        return min(n_blocks, _PROGRAMS_INTERPRETED)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return min(n_blocks, processors * _PROGRAMS_PER_PROCESSOR)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product reads x: autocast's where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
