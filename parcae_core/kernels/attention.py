"""Which of torch's attention kernels runs: softmax(q k^T / sqrt(K)) v, causal.

torch.nn.functional.scaled_dot_product_attention picks, for the shapes and dtypes it meets, the
first of an order of backends that can run. On Hopper and later cuDNN's comes first, which public
reports find 1.7 to 2.3 times as fast there in training shapes and slower before; `python -m
benchmarks.gpu_session` measures both, which nobody here has yet. FlexAttention has nothing to add: the
mask is the causal one, which all of these skip half the work for, and there is no bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from parcae_core.config import ModelConfig

First = Literal["flash", "cudnn"]
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
_HOPPER = (9, 0)


def first_backend(capability: tuple[int, int]) -> First:
    """The backend to try first on a GPU of a compute capability."""
    return "cudnn" if capability >= _HOPPER else "flash"


@contextmanager
def backend_order(device: torch.device, first: First | None = None) -> Iterator[None]:
    """Within it, attention on a GPU takes the first backend that can run: flash or cuDNN, the
    other, the memory-efficient one, the plain one.

    Entered once around a run: it sets what is global to torch. On a CPU torch decides.

    Args:
        first: None: by the device's capability.
    """
    if device.type != "cuda":
        yield
        return
    first = first or first_backend(torch.cuda.get_device_capability(device))
    fast = sorted(_BACKENDS, key=lambda name: name != first)
    order = [_BACKENDS[name] for name in fast]
    with sdpa_kernel([*order, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        yield


def backends_taken(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Names of the backends that a model's layers meet, as results record them.

    Args:
        dtype: of queries, keys and values, autocast's where that is on.
    """
    taken = set()
    for layer in (0, config.n_prelude):
        heads, kv_heads = config.layer_heads(layer), config.layer_kv_heads(layer)
        d_head = config.layer_width(layer) // heads
        shapes = [(1, n, config.context, d_head) for n in (heads, kv_heads)]
        # the choice depends on shapes and on whether a gradient is needed, not on values
        q, k = (torch.empty(s, device=device, dtype=dtype, requires_grad=True) for s in shapes)
        found = torch._fused_sdp_choice(q, k, k, is_causal=True, enable_gqa=heads != kv_heads)
        taken.add(SDPBackend(found).name.lower().removesuffix("_attention"))
    return "+".join(sorted(taken))
