"""The model written out from its equations, once, with no shared code: the definition of correct.

Works on a state dict, sequence by sequence, with explicit softmax, rotation by cos and sin, and
the loop unrolled. Source: REFERENCE.md, "Forward, exactly".
"""

import math

import torch


def rms(x, w=None, eps=1e-5):
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if w is None else y * w


def rotate(x, base):
    """x (T, H, K): interleaved pairs turned by position * base^(-2i/K)."""
    t, _, k = x.shape
    # angles in float32, as published and as ours; everything else in the input's precision
    frequency = base ** (-torch.arange(0, k, 2) / k)
    angle = torch.outer(torch.arange(t, dtype=torch.float32), frequency)
    table = torch.polar(torch.ones_like(angle), angle)
    cos, sin = table.real[:, None].to(x.dtype), table.imag[:, None].to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    return out


def attention(u, w, prefix, config, layer, ids):
    heads, kv_heads = config.layer_heads(layer), config.layer_kv_heads(layer)
    q, k, v = (
        (u @ w[f"{prefix}.attn.{n}.weight"].T).unflatten(-1, (h, -1))
        for n, h in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    if config.has_value_embedding(layer):
        gate = 2 * torch.sigmoid(
            u[:, : config.value_gate_width] @ w[f"{prefix}.attn.value_gate.weight"].T
        )
        v = v + gate[..., None] * w[f"value_embeddings.{layer}.weight"][ids].unflatten(
            -1, (kv_heads, -1)
        )
    q, k = rotate(q, config.rope_base), rotate(k, config.rope_base)
    if config.qk_norm:
        eps = torch.finfo(u.dtype).eps
        q, k = rms(q, eps=eps), rms(k, eps=eps)
    t, out = u.shape[0], []
    for head in range(heads):
        g = head // (heads // kv_heads)
        scores = q[:, head] @ k[:, g].T / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
        out.append(torch.softmax(scores, -1) @ v[:, g])
    return torch.cat(out, -1) @ w[f"{prefix}.attn.out.weight"].T


def block(x, w, prefix, config, layer, ids):
    def after(y, name):
        return rms(y, w[f"{prefix}.{name}.weight"]) if config.residual_norm else y

    u = rms(x, w[f"{prefix}.norm_attn.weight"])
    x = after(x + attention(u, w, prefix, config, layer, ids), "norm_after_attn")
    u = rms(x, w[f"{prefix}.norm_mlp.weight"])
    up = u @ w[f"{prefix}.mlp.up.weight"].T
    if config.mlp == "swiglu":
        gate = u @ w[f"{prefix}.mlp.gate.weight"].T
        hidden = gate * torch.sigmoid(gate) * up
    else:
        hidden = 0.5 * torch.clamp(up, min=0) ** 2
    return after(x + hidden @ w[f"{prefix}.mlp.down.weight"].T, "norm_after_mlp")


def inject(h, e, w, config):
    if config.injection == "add":
        return h + e
    if config.injection == "concat":
        return torch.cat([h, e], -1) @ w["injection.weight"].T
    a = -torch.exp(w["injection.a_log"])
    dt = torch.log1p(torch.exp(w["injection.dt_bias"]))
    a_bar = torch.exp(dt * a)
    gain = (a_bar - 1) / a if config.injection == "diagonal-zoh" else dt
    return a_bar * h + gain * (e @ w["injection.B"].T)


def plain_logits(config, w, ids, no_grad, grad, h):
    """Logits (T, V) of one sequence ids (T,), with its own loop steps and initial state (T, S)."""
    c, p, q = config, config.n_prelude, config.n_prelude + config.n_core
    x = w["embedding.weight"][ids]
    for i in range(p):
        x = block(x, w, f"prelude.{i}", c, i, ids)
    if c.is_transformer:
        for i in range(c.n_core):
            x = block(x, w, f"core.{i}", c, p + i, ids)
    else:
        e = rms(x, w["norm_prelude.weight"]) if c.prelude_norm else x
        for t in range(no_grad + grad):
            with torch.set_grad_enabled(t >= no_grad):
                h = inject(h, e, w, c)
                for i in range(c.n_core):
                    h = block(h, w, f"core.{i}", c, p + i, ids)
        x = h @ w["readout.weight"].T if c.readout else h
    for i in range(c.n_coda):
        x = block(x, w, f"coda.{i}", c, q + i, ids)
    head = w["embedding.weight"] if c.tie_embeddings else w["head.weight"]
    return rms(x, w["norm_final.weight"]) @ head.T
