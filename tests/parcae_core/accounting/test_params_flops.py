"""Closed forms against the module, torch's FLOP counter, and the published tables."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from parcae_core.accounting.flops import eval_flops_per_token, train_flops_per_token
from parcae_core.accounting.params import count_params
from parcae_core.depth import DepthDraw, FixedDepth, PoissonDepth, default_backprop_depth
from parcae_core.model.parcae import build_model
from parcae_core.presets import PRESETS, preset
from tests.parcae_core.model.test_parcae import VARIANTS

# (Transformer, Parcae). Source: Parcae (arXiv:2604.12946), table of models.
PUBLISHED = {
    "140m": (143_141_184, 144_323_136),
    "370m": (385_903_104, 388_003_328),
    "770m": (773_375_040, 776_655_680),
    "1.3b": (1_333_868_544, 1_338_591_744),
}


def flop_counter() -> FlopCounterMode:
    """torch's counter knows FlashAttention on CUDA but not the CPU's; the products are the same."""
    aten = torch.ops.aten

    def forward(q, k, v, *_, out_val=None, **__):
        return sdpa_flop_count(q.shape, k.shape, v.shape)

    def backward(grad, q, k, v, *_, out_val=None, **__):
        return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)

    for function in (forward, backward):
        function._get_raw = True
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("transformer", [True, False])
def test_parameter_counts_equal_the_module_and_the_paper(name, transformer):
    config = preset(name, transformer=transformer)
    model = build_model(config, seed=0, device="meta")
    counts = count_params(config)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.core == sum(p.numel() for p in model.core.parameters())
    if name in PUBLISHED:
        assert counts.total == PUBLISHED[name][0 if transformer else 1]


def test_components_of_the_140m_are_the_published_ones():
    counts = count_params(preset("140m"))
    assert (counts.embedding, counts.value_embeddings) == (25_165_824, 75_497_472)
    assert counts.prelude == counts.core == counts.coda == 14_159_040
    assert counts.readout == counts.injection - 2 * 768 == 589_824
    assert count_params(preset("140m").replace(prelude_norm=False)).total == 144_322_368


@pytest.mark.parametrize(
    ("name", "rdm", "n_params"),
    [
        # Source: PAPER.md, "RDM setup"
        ("rdm-100m", True, 114_242_560),
        ("rdm-350m", True, 382_765_056),
        ("rdm-350m", False, 378_558_464),
        # published as 114,242,560, RDM's own count; see presets._rdm_setup
        ("rdm-100m", False, 113_189_888),
    ],
)
def test_parameter_counts_of_the_rdm_setup(name, rdm, n_params):
    config = preset(name, rdm=rdm)
    assert count_params(config).total == n_params
    model = build_model(config, seed=0, device="meta")
    assert sum(p.numel() for p in model.parameters()) == n_params


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_of_every_variant_equal_the_module(tiny, variant):
    config = tiny(**VARIANTS[variant])
    model = build_model(config, seed=0)
    assert count_params(config).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "rule", "mflops"),
    [
        # Source: REFERENCE.md, "FLOPs per token"
        ("140m", "code", [828.2, 869.1, 1032.7, 1196.3, 1359.9, 1523.5, 1687.1]),
        ("370m", "code", [2428.7, 2562.9, 3099.9, 3636.8, 4173.7, 4710.7, 5247.6]),
        ("140m", "paper", [526.2, 567.1]),
    ],
)
def test_flops_per_token_equal_the_published_rules(name, rule, mflops):
    for mu, want in zip((1, 2, 4, 6, 8, 10, 12), mflops, strict=False):
        depth = PoissonDepth(mean_recurrence=mu, mean_backprop_depth=default_backprop_depth(mu))
        found = train_flops_per_token(preset(name), depth, 2048, rule).total / 1e6
        assert round(found, 1) == want


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"gqa"}))
def test_exact_rule_equals_the_products_that_run(tiny, variant):
    config = tiny(**VARIANTS[variant])
    model = build_model(config, seed=0)
    batch, seq_len = 4, 12
    ids = torch.zeros(batch, seq_len, dtype=torch.int64)
    depth = None if config.is_transformer else FixedDepth(mean_recurrence=5, mean_backprop_depth=2)
    n_loops = 1 if depth is None else depth.sample(batch, seed=0, step=0)
    with flop_counter() as counter:
        model(ids, n_loops, targets=ids).loss.backward()
    want = train_flops_per_token(config, depth, seq_len, "exact").total * ids.numel()
    assert counter.get_total_flops() == pytest.approx(want, rel=1e-12)


def test_exact_rule_counts_the_true_mean_depth(tiny):
    """The exact rule's expectation equals the average of the FLOPs of sampled batches."""
    config = tiny()
    depth = PoissonDepth(mean_recurrence=2, mean_backprop_depth=1)
    draws = [depth.sample(256, seed=0, step=s) for s in range(200)]
    no_grad = float(np.mean([d.no_grad.mean() for d in draws]))
    one, three = (
        train_flops_per_token(
            config, FixedDepth(mean_recurrence=n, mean_backprop_depth=1), 12, "exact"
        ).total
        for n in (1, 3)
    )
    expected = train_flops_per_token(config, depth, 12, "exact").total
    assert expected == pytest.approx(one + (three - one) / 2 * no_grad, rel=0.01)


def test_eval_flops_equal_a_forward_pass(tiny):
    config = tiny()
    model = build_model(config, seed=0)
    ids = torch.zeros(2, 12, dtype=torch.int64)
    with torch.no_grad(), flop_counter() as counter:
        model(ids, 7)
    assert counter.get_total_flops() == eval_flops_per_token(config, 7, 12) * ids.numel()


def test_training_and_data_parallel_draws_cost_what_their_steps_say(tiny):
    """Two draws with the same sums of steps cost the same products, however they are spread."""
    model = build_model(tiny(), seed=0)
    ids = torch.zeros(4, 12, dtype=torch.int64)
    totals = []
    for no_grad in ([3, 2, 1, 0], [2, 2, 1, 1]):
        draw = DepthDraw(no_grad=np.array(no_grad), grad=np.full(4, 2))
        with flop_counter() as counter:
            model(ids, draw, targets=ids).loss.backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="flops rule is 'papre'"):
        train_flops_per_token(preset("nano", transformer=True), None, 128, "papre")


def test_params_verb_prints_the_contract(capsys):
    from sweeps.cli.model import params

    params(preset=None, mean_recurrence=[8], as_json=True)
    table = json.loads(capsys.readouterr().out)
    for name, (transformer, parcae) in PUBLISHED.items():
        assert table[name]["transformer"]["n_params"] == transformer
        assert table[name]["parcae"]["n_params"] == parcae
    row = table["140m"]["parcae"]["by_mean_recurrence"]["8"]
    assert row["n_params_unrolled"] == 144_323_136 + 7 * 14_159_040
    assert round(row["train_flops_per_token"]["code"] / 1e6, 1) == 1359.9
