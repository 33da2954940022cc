"""What a device does at best, measured: matrix products and copies. The floors rest on these."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.common import synchronise

_SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices: large enough to reach the plateau
_COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}  # far beyond any cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Measured in the same process as what is held against them."""

    matmul_flops_per_s: float
    copy_bytes_per_s: float  # bytes read plus bytes written

    def floors(self, *, flops: float, n_bytes: float) -> tuple[float, float]:
        """Seconds that neither the products nor the memory traffic can be faster than."""
        return flops / self.matmul_flops_per_s, n_bytes / self.copy_bytes_per_s


def measure_rates(device: torch.device, precision: str) -> Rates:
    """Best sustained rates: the median of several runs after a warm-up."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product_s = median_seconds(lambda: torch.mm(a, b, out=out))
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    copy_s = median_seconds(lambda: target.copy_(source))
    return Rates(
        matmul_flops_per_s=2 * side**3 / product_s,
        copy_bytes_per_s=2 * source.numel() / copy_s,
    )


def median_seconds(run: Callable[[], object], *, repeats: int = 7) -> float:
    for _ in range(2):
        run()
    synchronise()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
