"""Names of this machine's devices, as benchmark rows carry them, and published peaks. Torch-free.

Source: NVIDIA's data sheets of each card; dense bfloat16 with float32 accumulation, no sparsity.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

NVIDIA_SMI_S = 10.0  # a driver that has to start takes a few seconds

# name as torch reports it begins with or holds the key; first match wins
_BFLOAT16: dict[str, float] = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def peak_flops_per_s(device: str, precision: str = "bfloat16") -> float | None:
    """Peak of a named device; None where none is known, as for any CPU."""
    if precision != "bfloat16":
        return None
    return next((peak for name, peak in _BFLOAT16.items() if name in device), None)


@cache
def cpu_device(threads: int) -> str:
    """A CPU as benchmark rows name it: rates of one model say nothing of another."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )
    return f"cpu{f' ({model})' if model else ''}, {threads} threads"


@cache  # a plan asks for every trial
def local_gpu() -> str | None:
    """Name of the first NVIDIA GPU here, without importing torch; None where there is none, or none that answers."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_S
        )
    except (OSError, subprocess.TimeoutExpired):  # it waits for ever on a card that has failed
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None
