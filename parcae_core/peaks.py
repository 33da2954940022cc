"""Published peaks of GPUs, for utilisation and for a stated assumption about a device. Torch-free.

Source: NVIDIA's data sheets of each card; dense bfloat16 with float32 accumulation, no sparsity.
"""

from __future__ import annotations

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
