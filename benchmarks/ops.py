"""Every op of parcae_core/kernels: reference, torch and, on a GPU, Triton and the compiled reference.

An op is a file there with `<op>_ref` and `<op>`; what it is called with stands in `EXAMPLES`, and an
op without an example is named, not skipped in silence. The floor is the least traffic: every input
and output once, forward; with the backward pass also every gradient once, over the rate of a copy.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import interleaved, provenance, quantiles
from benchmarks.rates import Rates
from parcae_core import kernels
from parcae_core.config import ModelConfig

EPS = 1e-5
REPEATS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Of the inputs: a preset's, one whole batch."""

    batch: int
    seq_len: int
    d_model: int
    n_head: int
    d_ff: int
    dtype: torch.dtype  # of activations; weights and the residual stream stay float32
    device: torch.device

    def wide(self, *size: int) -> Tensor:
        return torch.randn(*size, device=self.device)

    def low(self, *size: int) -> Tensor:
        return self.wide(*size).to(self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Inputs of an op; floating tensors among `args` get gradients, but for the `tables`."""

    args: tuple  # of the op and, with `ref_more`, of its reference
    options: dict  # keyword arguments of the op
    ref_more: tuple = ()  # what the reference takes after `args`
    tables: tuple[int, ...] = ()  # which of `args` get no gradient

    def leaves(self) -> tuple:
        """`args`, each floating tensor a leaf of its own that wants a gradient."""
        return tuple(
            value.detach().clone().requires_grad_()
            if isinstance(value, Tensor) and value.is_floating_point() and i not in self.tables
            else value
            for i, value in enumerate(self.args)
        )


def _stream(s: Shape) -> tuple[int, int, int]:
    return s.batch, s.seq_len, s.d_model


def _heads(s: Shape) -> tuple[int, int, int, int]:
    return s.batch, s.seq_len, s.n_head, s.d_model // s.n_head


def _rms_norm(s: Shape) -> Example:
    return Example(args=(s.wide(*_stream(s)), s.wide(s.d_model), EPS), options={})


def _relu_squared(s: Shape) -> Example:
    return Example(args=(s.low(s.batch, s.seq_len, s.d_ff),), options={})


def _relu_squared_mlp(s: Shape) -> Example:
    # weights of a size that leaves the hidden state near 1
    up, down = s.low(s.d_ff, s.d_model), s.low(s.d_model, s.d_ff)
    args = (s.low(*_stream(s)), up / s.d_model**0.5, down / s.d_ff**0.5)
    return Example(args=args, options={})


def _residual_norm(s: Shape) -> Example:
    args = (s.wide(*_stream(s)), s.low(*_stream(s)), s.wide(s.d_model), EPS)
    return Example(args=args, options={})


def _loop_boundary(s: Shape) -> Example:
    decay = torch.full((s.d_model,), 0.45, device=s.device)
    args = (s.wide(*_stream(s)), decay, s.wide(*_stream(s)), s.wide(s.d_model), EPS)
    return Example(args=args, options={})


def _rope_qk_norm(s: Shape) -> Example:
    d_head = s.d_model // s.n_head
    angle = torch.rand(s.seq_len, d_head // 2, device=s.device)
    turn = torch.stack((angle.cos(), angle.sin()), -1)
    args = (s.low(*_heads(s)), s.low(*_heads(s)), turn)
    return Example(
        args=args, options={"norm": True, "eps": None}, ref_more=(True, None), tables=(2,)
    )


def _value_gate(s: Shape) -> Example:
    batch, seq_len, n_head, _ = _heads(s)
    return Example(
        args=(s.low(*_heads(s)), s.low(batch, seq_len, n_head), s.wide(*_stream(s))), options={}
    )


EXAMPLES: dict[str, Callable[[Shape], Example]] = {
    "rms_norm": _rms_norm,
    "relu_squared": _relu_squared,
    "relu_squared_mlp": _relu_squared_mlp,
    "residual_norm": _residual_norm,
    "loop_boundary": _loop_boundary,
    "rope_qk_norm": _rope_qk_norm,
    "value_gate": _value_gate,
}


# their shapes are the head's and the tables', not a block's
NOT_TIMED = {"linear_cross_entropy", "lookup"}


def find_ops() -> dict[str, tuple[Callable, Callable]]:
    """name -> (reference, op), for every file of parcae_core/kernels that has both and is timed."""
    found = {}
    for info in pkgutil.iter_modules(kernels.__path__):
        if info.name in NOT_TIMED:
            continue
        module = importlib.import_module(f"{kernels.__name__}.{info.name}")
        reference, op = (getattr(module, n, None) for n in (f"{info.name}_ref", info.name))
        if reference is not None and op is not None:
            found[info.name] = (reference, op)
    return found


def op_rows(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    device: torch.device,
    precision: str,
    rates: Rates,
) -> Iterator[dict]:
    """Time every op at a preset's shapes; print each row and yield it."""
    low = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shape = Shape(
        batch=batch, seq_len=seq_len, d_model=config.d_model, n_head=config.n_head,
        d_ff=config.d_ff, dtype=low, device=device,
    )  # fmt: skip
    for name, (reference, op) in find_ops().items():
        if name not in EXAMPLES:
            print(f"op {name}: no example in benchmarks/ops.py, so it is not timed; add one")
            continue
        example = EXAMPLES[name](shape)
        for gradient in (False, True):
            yield from _rows_of(name, reference, op, example, gradient, shape, rates)


def _rows_of(
    name: str, reference: Callable, op: Callable, example: Example, gradient: bool, shape: Shape,
    rates: Rates,
) -> Iterator[dict]:  # fmt: skip
    calls = implementations(reference, op, example, shape.device)
    for impl, error in inaccurate(calls, example, shape.dtype).items():
        print(f"op {name}: {impl} errs by {error}, so it is not timed", flush=True)
        del calls[impl]
    timed = {impl: _timed(call, example, gradient) for impl, call in calls.items()}
    seconds = interleaved(timed, steps=REPEATS)
    n_bytes = least_bytes(calls["reference"], example, gradient)
    floor = n_bytes / rates.copy_bytes_per_s
    for impl in calls:
        mid, low, high = quantiles(seconds[impl])
        over = median(a / b for a, b in zip(seconds["reference"], seconds[impl], strict=True))
        row = provenance() | {
            "op": name,
            "impl": impl,
            "passes": "forward + backward" if gradient else "forward",
            "shape": f"{shape.batch}x{shape.seq_len}x{shape.d_model}",
            "dtype": str(shape.dtype)[6:],
            "seconds_median": f"{mid:.4g}",
            "seconds_q20": f"{low:.4g}",
            "seconds_q80": f"{high:.4g}",
            "floor_bytes_s": f"{floor:.4g}",
            "copy_bytes_per_s": f"{rates.copy_bytes_per_s:.4g}",
            "speedup_over_reference": round(over, 3),
            "load_1min": round(os.getloadavg()[0], 1),
        }
        yield row
        print(
            f"op {name:14s} {row['passes']:18s} {impl:10s} {1e3 * mid:9.3f} ms  "
            f"floor {1e3 * floor:.3f}  {over:.2f}x the reference",
            flush=True,
        )


def inaccurate(calls: dict[str, Callable], example: Example, dtype: torch.dtype) -> dict[str, str]:
    """What errs more than the reference in the same precision does, plus a slack.

    Errors are of outputs and gradients against the reference in float64, relative to each one's
    largest value; the slack is an eighth of the precision's spacing at 1.
    """
    truth = _values(calls["reference"], [_double(a) for a in example.args], example)
    found = {}
    for impl, call in calls.items():
        got = _values(call, example.args, example)
        found[impl] = [
            ((a.double() - t).abs().max() / t.abs().max().clamp_min(1e-30)).item()
            for a, t in zip(got, truth, strict=True)
        ]
    slack = max(torch.finfo(dtype).eps / 8, 1e-6)
    return {
        impl: f"{max(errors):.1e} where the reference does by {max(found['reference']):.1e}"
        for impl, errors in found.items()
        if not all(e <= r + slack for e, r in zip(errors, found["reference"], strict=True))
    }


def _values(call: Callable, args: Sequence, example: Example) -> list[Tensor]:
    """Outputs, and the gradients for the same random ones of the outputs."""
    leaves = replace(example, args=tuple(args)).leaves()
    outputs = _tensors(call(*leaves))
    wanted = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
    draw = torch.Generator(outputs[0].device).manual_seed(0)
    # rounded first to the narrowest dtype at hand, so that the truth has the same
    narrow = min((a.dtype for a in example.args if isinstance(a, Tensor)), key=lambda d: d.itemsize)
    coming = [
        torch.randn(o.shape, generator=draw, device=o.device).to(narrow).to(o.dtype)
        for o in outputs
    ]
    return [*outputs, *torch.autograd.grad(outputs, wanted, coming)]


def _double(value):
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def implementations(
    reference: Callable, op: Callable, example: Example, device: torch.device
) -> dict[str, Callable]:
    """The ways to compute an op here, each a function of the tensors alone."""
    by_impl = "impl" in inspect.signature(op).parameters
    plain = example.options | ({"impl": "torch"} if by_impl else {})
    calls = {
        "reference": lambda *args: reference(*args, *example.ref_more),
        "torch": lambda *args: op(*args, **plain),
    }
    if device.type == "cuda":  # the compiler needs a minute an op on a CPU, and nobody runs that
        compiled = torch.compile(reference)
        calls["compile"] = lambda *args: compiled(*args, *example.ref_more)
        if by_impl:
            calls["triton"] = lambda *args: op(*args, **example.options, impl="triton")
    return calls


def _timed(call: Callable, example: Example, gradient: bool) -> Callable[[int], None]:
    leaves = example.leaves() if gradient else example.args

    @torch.set_grad_enabled(gradient)
    def run(_: int) -> None:
        outputs = _tensors(call(*leaves))
        if gradient:
            wanted = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
            torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])

    return run


def least_bytes(call: Callable, example: Example, gradient: bool) -> int:
    """Inputs and outputs once; with gradient, gradients of both once more."""
    with torch.no_grad():
        outputs = _tensors(call(*example.args))
    kept = sum(a.nbytes for a in example.args if isinstance(a, Tensor))
    out = sum(o.nbytes for o in outputs)
    if not gradient:
        return kept + out
    # the backward pass reads the inputs again, reads the outputs' gradients, writes the inputs'
    moved = sum(a.nbytes for a in example.leaves() if isinstance(a, Tensor) and a.requires_grad)
    return 2 * (kept + out) + moved


def _tensors(outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
