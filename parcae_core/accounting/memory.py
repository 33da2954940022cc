"""Memory of a training step in closed form: what stays whatever the batch, and bytes per sequence.

    peak = state + fixed + micro_batch * per_sequence

The per-sequence part counts what autograd keeps for the backward pass, layer by layer, as the plain
operations keep it; fused kernels keep less, so on a GPU it is an upper estimate. A test compares it
with the bytes that torch's saved-tensor hooks see. On top comes the working set of the widest layer.
W width of a layer, F its hidden width, KV width of its keys, H and G its heads, S state width.
Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from parcae_core.accounting.params import count_params, kv_width, layer_matmul_params
from parcae_core.config import ModelConfig

WIDE = 4  # bytes of a float32: weights, residual stream, loop state
# Weights, gradients and two moments; Muon's matrices have one moment and need less
STATE_BYTES_PER_PARAMETER = 4 * WIDE
# float32 logits that parcae_core.kernels.linear_cross_entropy holds at a time (256 MiB are 2,048 tokens
# of a vocabulary of 32,768, enough for full products; a CPU's want about 16 MiB), and as many tensors
# of their size
CHUNK_LOGITS = {"cuda": 1 << 26, "cpu": 1 << 22}
CHUNK_TENSORS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one training step."""

    state: int  # weights, gradients, optimiser
    fixed: int  # low-precision copies of the weights, gradient of the head, a chunk of logits
    saved_per_sequence: int  # kept for the backward pass
    working_per_sequence: int  # alive besides: states, drive, the widest layer's gradients

    @property
    def per_sequence(self) -> int:
        return self.saved_per_sequence + self.working_per_sequence

    def peak(self, micro_batch: int) -> int:
        """Bytes with so many sequences at a time."""
        return self.state + self.fixed + micro_batch * self.per_sequence


def training_memory(
    model: ModelConfig, *, grad_steps: int, context: int, precision: str, on_gpu: bool
) -> MemoryEstimate:
    """The estimate with `grad_steps` loop steps that carry gradient, the most a scheme has."""
    low = 2 if precision == "bfloat16" else WIDE
    chunk = CHUNK_TENSORS * WIDE * CHUNK_LOGITS["cuda" if on_gpu else "cpu"]
    head = model.vocab_size * model.d_model
    matmuls = sum(layer_matmul_params(model, i) for i in range(model.n_layers))
    copies = low * (matmuls + head) if low < WIDE else 0
    saved = saved_bytes_per_token(model, grad_steps, precision)
    widest = max(range(model.n_layers), key=model.layer_ff)
    working = 3 * WIDE * model.state_width  # h, the drive, and the gradient of the drive
    working += 2 * low * model.layer_ff(widest) + 4 * WIDE * model.layer_width(widest)
    return MemoryEstimate(
        state=STATE_BYTES_PER_PARAMETER * count_params(model).total,
        fixed=copies + WIDE * head + chunk,
        saved_per_sequence=context * saved,
        working_per_sequence=context * working,
    )


def saved_bytes_per_token(model: ModelConfig, grad_steps: int, precision: str) -> int:
    """What autograd keeps for one token with `grad_steps` loop steps that carry gradient."""
    low = 2 if precision == "bfloat16" else WIDE
    d, s = model.d_model, model.state_width
    once = core = 0
    for layer in range(model.n_layers):
        kept = _layer(model, layer, low)
        if model.layer_part(layer) == "core":
            core += kept
        else:
            once += kept
        if model.has_value_embedding(layer):
            once += WIDE * kv_width(model, layer)  # the table's rows, one lookup for all loops
    # inputs of the last norms; gradient of the head
    once += WIDE * d * (2 + model.has_prelude_norm)
    if model.is_transformer:
        return once + core
    once += low * d  # e, which the injection reads
    if model.injection.startswith("diagonal"):
        once += low * s  # B e before the gain
        core += WIDE * s  # h, for the decay's gradient
    elif model.injection == "concat":
        core += low * s
    once += low * s * model.has_readout
    return once + grad_steps * core


def _layer(model: ModelConfig, layer: int, low: int) -> int:
    """Bytes per token of one block."""
    w, kv, f = model.layer_width(layer), kv_width(model, layer), model.layer_ff(layer)
    heads, kv_heads = model.layer_heads(layer), model.layer_kv_heads(layer)
    # autocast converts a norm's output anew for every product that reads it
    swiglu = model.mlp == "swiglu"
    readers = (3, 2 if swiglu else 1) if low < WIDE else (1, 1)
    kept = 2 * WIDE * w * (2 if model.residual_norm else 1)  # inputs of the norms
    kept += low * w * sum(readers)
    kept += low * (w + 2 * kv) + low * w  # q, k, v and the output of attention
    kept += WIDE * (w + kv) * model.qk_norm  # q and k before their norm
    kept += low * f * (4 if swiglu else 2)
    return kept + WIDE * (2 + 2 * heads + kv_heads)  # one number per norm's row and per softmax
