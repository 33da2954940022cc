"""Published checkpoints, built here by their documented names and shapes (REFERENCE.md)."""

import json
import pickle

import pytest
import torch

from parcae_core.checkpoints.published import load_upstream, save_upstream
from parcae_core.checkpoints.published_config import upstream_settings
from parcae_core.errors import UserError
from parcae_core.model.parcae import build_model

D, F, V, HEADS, CONTEXT = 64, 256, 128, 4, 16


def settings(kind="parcae", **changes):
    base = {
        "block_size": CONTEXT,
        "n_embd": D,
        "intermediate_size": F,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": V,
        "padded_vocab_size": V,
        "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": 50000},
        "norm_class_name": "RMSNorm",
        "norm_eps": 1e-5,
        "mlp_class_name": "BaseMLP",
        "nonlin_name": "ReLU2",
        "qk_norm": True,
        "tie_embeddings": True,
        "use_fused_head": "pytorch",
        "init_strategy": "scaled-zero",
        "hf_config": {},
    }
    if kind == "gpt":
        return base | {"n_layer": 6, "_class_name": "GPTConfig"} | changes
    looped = {
        "injection_type": "diagonal",
        "n_layers_in_prelude": 2,
        "n_layers_in_recurrent_block": 2,
        "n_layers_in_coda": 2,
        "recurrent_embedding_dimension": D,
        "recurrent_intermediation_embedding_dimension": F,
        "recurrent_num_attention_heads": None,
        "prelude_norm": True,
        "mean_recurrence": 8,
        "mean_backprop_depth": 4,
        "_class_name": "ParcaeConfig",
    }
    return base | looped | changes


def tensors(kind="parcae", *, tied=True, injection="diagonal", gated=False, transposed=False):
    """A state dict by the published names; random values."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=g) * 0.2

    def layer(prefix, index):
        out = {
            f"{prefix}.norm_1.weight": 1 + rand(D),
            f"{prefix}.norm_2.weight": 1 + rand(D),
            f"{prefix}.mlp.fc.weight": rand(2 * F if gated else F, D),
            f"{prefix}.mlp.proj.weight": rand(D, F),
        }
        out |= {f"{prefix}.attn.c_{n}.weight": rand(D, D) for n in ("q", "k", "v", "proj")}
        if index % 2 == 1:  # layers 1, 3, 5 of 6 have a table
            out[f"{prefix}.attn.ve_gate.weight"] = rand(HEADS, 32)
        return out

    state = {"transformer.wte.weight": rand(V, D), "transformer.ln_f.weight": 1 + rand(D)}
    state |= {f"value_embeds.{i}.weight": rand(V, D) for i in (1, 3, 5)}
    if kind == "gpt":
        for i in range(6):
            state |= layer(f"transformer.h.{i}", i)
    else:
        for p, part in enumerate(("prelude", "core_block", "coda")):
            for i in range(2):
                state |= layer(f"transformer.{part}.{i}", 2 * p + i)
        state["transformer.ln_prelude.weight"] = 1 + rand(D)
        state["transformer.C.weight"] = rand(D, D)
        if injection == "diagonal":
            state |= {f"transformer.adapter.{n}": rand(D) for n in ("A_log", "dt_bias")}
            state["transformer.adapter.B"] = rand(D, D)
        elif injection == "linear":
            state["transformer.adapter.adapter.weight"] = rand(D, 2 * D)
    head = state["transformer.wte.weight"] if tied else rand(V, D)
    state["lm_head.weight"] = head.T.contiguous() if transposed else head
    exponent = -torch.arange(0, D // HEADS, 2) / (D // HEADS)
    angle = torch.outer(torch.arange(CONTEXT).float(), 50_000.0**exponent)
    state["freqs_cis"] = torch.stack([angle.cos(), angle.sin()], -1)[None, :, None]
    return state


def write(folder, config, state, name="model.pt"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / name)
    return folder


CASES = {
    "parcae": (settings(), tensors()),
    "concat-swiglu": (
        settings(injection_type="linear", mlp_class_name="GatedMLP", nonlin_name="SiLU"),
        tensors(injection="linear", gated=True),
    ),
    "add": (settings(injection_type="add"), tensors(injection="add")),
    "untied": (settings(tie_embeddings=False), tensors(tied=False)),
    "untied-fused": (
        settings(tie_embeddings=False, use_fused_head="full-triton"),
        tensors(tied=False, transposed=True),
    ),
    "transformer": (settings("gpt"), tensors("gpt")),
    "transformer-untied": (
        settings("gpt", tie_embeddings=False),
        tensors("gpt", tied=False, transposed=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", ["model.pt", "pytorch_model.bin"])
def test_reads_and_writes_back_the_same_tensors(tmp_path, case, weights):
    config, state = CASES[case]
    loaded = load_upstream(write(tmp_path / "in", config, state, weights))
    save_upstream(loaded, tmp_path / "out")
    again = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert set(again) == set(state)
    for name, tensor in state.items():
        if name == "freqs_cis":
            assert torch.allclose(again[name], tensor, atol=1e-6)
        else:
            assert torch.equal(again[name], tensor), name
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_weights_land_where_the_equations_use_them(tmp_path):
    """Published tensors, put by hand into the written-out equations, give our logits."""
    from tests.support.plain_forward import plain_logits

    config, state = CASES["parcae"]
    model = load_upstream(write(tmp_path / "in", config, state)).model.double()
    inner = {
        "norm_attn": "norm_1", "norm_mlp": "norm_2", "attn.q": "attn.c_q", "attn.k": "attn.c_k",
        "attn.v": "attn.c_v", "attn.out": "attn.c_proj", "attn.value_gate": "attn.ve_gate",
        "mlp.up": "mlp.fc", "mlp.down": "mlp.proj",
    }  # fmt: skip
    w = {
        "embedding.weight": state["transformer.wte.weight"],
        "norm_final.weight": state["transformer.ln_f.weight"],
        "norm_prelude.weight": state["transformer.ln_prelude.weight"],
        "readout.weight": state["transformer.C.weight"],
        "injection.a_log": state["transformer.adapter.A_log"],
        "injection.dt_bias": state["transformer.adapter.dt_bias"],
        "injection.B": state["transformer.adapter.B"],
    }
    w |= {f"value_embeddings.{i}.weight": state[f"value_embeds.{i}.weight"] for i in (1, 3, 5)}
    for ours, theirs in (("prelude", "prelude"), ("core", "core_block"), ("coda", "coda")):
        for i in range(2):
            for a, b in inner.items():
                if f"transformer.{theirs}.{i}.{b}.weight" in state:
                    w[f"{ours}.{i}.{a}.weight"] = state[f"transformer.{theirs}.{i}.{b}.weight"]
    w = {k: v.double() for k, v in w.items()}
    ids = torch.randint(0, V, (2, 11), generator=torch.Generator().manual_seed(1))
    h = torch.zeros(2, 11, D, dtype=torch.float64)
    with torch.no_grad():
        got = model(ids, 3, state=h).logits
        want = torch.stack([plain_logits(model.config, w, ids[i], 0, 3, h[i]) for i in range(2)])
    assert torch.allclose(got, want, rtol=0, atol=1e-9)


def test_our_models_can_be_written(tmp_path):
    from parcae_core.checkpoints.published import UpstreamCheckpoint
    from parcae_core.presets import preset

    model = build_model(preset("nano"), seed=0)
    described = upstream_settings(model.config, mean_recurrence=4, mean_backprop_depth=2)
    save_upstream(UpstreamCheckpoint(model=model, settings=described), tmp_path / "out")
    again = load_upstream(tmp_path / "out")
    assert again.mean_recurrence == 4
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), again.model.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="does not exist in the published format"):
        upstream_settings(model.config.replace(injection="diagonal-zoh"))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def _drop(name):
    state = tensors()
    del state[name]
    return settings(), state


BAD = {
    "missing tensor": (*_drop("transformer.core_block.1.attn.c_q.weight"), r"core_block\.1\.attn\.c_q\.weight is missing"),
    "extra tensor": (settings(), tensors() | {"transformer.mystery": torch.zeros(1)}, "transformer.mystery"),
    "wrong shape": (settings(), tensors() | {"transformer.C.weight": torch.zeros(3, D)}, r"C\.weight has shape \(3, 64\), needed \(64, 64\)"),
    "untied head": (settings(), tensors() | {"lm_head.weight": torch.zeros(V, D)}, "lm_head.weight is not the embedding"),
    "softcap": (settings(logit_softcap=15.0), tensors(), "logit_softcap is 15.0"),
    "unknown key": (settings(flux=1), tensors(), "flux"),
    "unknown class": (settings(_class_name="Other"), tensors(), "_class_name is 'Other'"),
    "unknown mlp": (settings(nonlin_name="GELU"), tensors(), "GELU is not supported"),
    "scaled init": (settings(init_strategy="takase"), tensors(), "init_strategy is 'takase'"),
    "other rotary": (settings(rope_settings={"rope_base": 10000}), tensors(), "rotary table"),
    "layers": (settings(n_layers_in_coda=3), tensors(), "does not fit its config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_is_refused_by_name(tmp_path, case):
    config, state, words = BAD[case]
    with pytest.raises(UserError, match=words):
        load_upstream(write(tmp_path / "in", config, state))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, capsys):
    folder = write(tmp_path / "in", settings(), tensors())
    (folder / "model.pt").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))
    with pytest.raises(UserError, match="can run code"):
        load_upstream(folder)
    torch.save({"x": Evil()}, folder / "model.pt")
    with pytest.raises(UserError, match="can run code"):
        load_upstream(folder)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_truncated_files_are_refused(tmp_path, keep):
    folder = write(tmp_path / "in", settings(), tensors())
    data = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"model\.pt"):
        load_upstream(folder)
    (folder / "config.json").write_text('{"_class_name": ')
    with pytest.raises(UserError, match="not JSON"):
        load_upstream(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_upstream(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings()))
    with pytest.raises(UserError, match="no weights"):
        load_upstream(tmp_path)
