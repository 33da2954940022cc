"""Which of torch's attention kernels runs: softmax(q k^T / sqrt(K)) v, causal.

torch.nn.functional.scaled_dot_product_attention picks, for the shapes and dtypes it meets, the
first of an order of backends that can run. The order here is FlashAttention, cuDNN's, the memory-
efficient one, the plain one. Flash before cuDNN, because cuDNN plans anew for every batch size and
the loop's shrinks from step to step. FlexAttention has nothing to add: the mask is the causal one,
which all of these skip half the work for, and there is no bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from parcae_core.config import ModelConfig

ORDER = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


@contextmanager
def backend_order(device: torch.device) -> Iterator[None]:
    """Within it, attention on a GPU takes the first backend of ORDER that can run.

    Entered once around a run: it sets what is global to torch. On a CPU torch decides.
    """
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(list(ORDER), set_priority=True):
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
