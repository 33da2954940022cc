"""What each field of a spec is for, by section and key; what a value must be says `sweeps.design.spec`."""

from __future__ import annotations

_SHARED = {
    "name": "The sweep's folder below --out, and its group in W&B.",
    "design": "What varies between the trials.",
    "preset": "The shape of the model; `parcae params` lists them. Without one, `model` gives all.",
    "model": "Changes to the preset's shape.",
    "data": "The text and its tokenizer.",
    "context": "Trained tokens per sequence. A prepared folder brings its own.",
    "batch_sequences": "Sequences of one optimiser step, all processes together.",
    "optim": "Changes to the optimiser.",
    "depth": "How the number of loops is drawn in training.",
    "evaluation": "What is measured at the end of a training.",
    "seeds": "Of initialisation, initial states and depths.",
    "data_seed": "Of the order of the rows, the same for every trial.",
    "min_steps": "A budget that buys fewer steps is refused: its schedule would mean nothing.",
    "recurrence_one": "What mean_recurrence 1 trains: the fixed-depth Transformer, or the model looped once.",
    "budget_rule": "How budgets count FLOPs: the paper's Appendix D, the published script, or the matmuls that run.",
    "precision": "Of activations; weights and optimiser stay in float32.",
    "compile": "Faster after a longer start; changes rounding only.",
    "resources": "What a trial reserves.",
    "wandb": "Where runs are mirrored.",
    "budgets_flops": "Training compute. Tokens follow: more loops per token leave fewer tokens.",
    "budget_flops": "Training compute; tokens follow.",
    "n_tokens": "Tokens of each training, cut to whole steps.",
    "mean_recurrence": "mu_rec, the mean number of loops in training.",
    "mean_backprop_depth": "mu_bwd, the loops at the end that carry gradient.",
    "base": "What all trials share.",
    "prior": "Where the best mean_recurrence is expected: mean_recurrence * (C / budget_flops)^exponent.",
    "variation": "What a trial of a `list`, the `base`, or an axis of a `grid` may set.",
}

MEANINGS: dict[str, dict[str, str]] = {
    "IsoflopSpec": {
        "mean_recurrence": "mu_rec, for all budgets or for each its own; 1 is the fixed-depth Transformer.",
        "prior": "Where the best mu_rec is expected, for `mean_recurrence: auto`.",
    },
    "StabilitySpec": {
        "learning_rates": "Of both optimisers, each with every variant.",
        "variants": "Ways to feed the loop, by label; {} is the preset as it is.",
    },
    "IsoDepthSpec": {
        "unrolled_core_layers": "Of the core, the same for every trial: fewer layers are looped more often.",
        "widths": "d_model of the models.",
        "head_width": "Channels per head; the number of heads follows.",
    },
    "GridSpec": {"axes": "Every combination of these values is a trial."},
    "ListSpec": {"trials": "Each trial's own settings, over those of `base`."},
    "DataSection": {
        "corpus": "The text. A relative path starts at the spec file.",
        "tokenizer": "A BPE is trained on the corpus. A prepared folder brings its own.",
        "val_share": "Of the documents, held out for validation.",
    },
    "DepthSection": {
        "kind": "Drawn around mu_rec, always mu_rec, or growing in training.",
        "per": "Each sequence draws its own depth, or a batch shares one.",
        "split": "Of the loops without and with gradient: cut the drawn depth, or add the two.",
        "mean_backprop_depth": "mu_bwd, the loops at the end that carry gradient.",
        "ramp_steps": "Of a curriculum: steps until the full depth.",
        "ramp_share": "Of a curriculum: the same as a share of the training.",
        "ramp_shape": "Of a curriculum: how the depth grows.",
    },
    "EvaluationSection": {
        "loops": "Validation loss is read out after each of these numbers of loops.",
        "n_sequences": "Of the validation split, the same first ones for every trial.",
    },
    "ResourcesSection": {
        "cpus": "Cores of a trial; one thread each.",
        "gpus": "Of a trial; below 1, trials share a GPU.",
        "share": "Whether measured rates choose the part of a GPU.",
        "processes": "Training together, each with a share of every batch.",
    },
    "WandbSection": {
        "mode": "offline writes runs that `parcae sync` sends.",
        "project": "W&B's project.",
        "entity": "The owner of the project; your default when left out.",
    },
    "PriorSection": {
        "mean_recurrence": "The best mu_rec at `budget_flops`.",
        "budget_flops": "The budget that `mean_recurrence` is best for.",
        "exponent": "The best mu_rec grows as budget^exponent.",
        "factor": "The window's half width.",
    },
    "ModelOverrides": {
        "vocab_size": "Rows of the embedding; at least the tokenizer's ids.",
        "context": "Tokens that a sequence may have.",
        "d_model": "Width.",
        "n_head": "Attention heads.",
        "d_ff": "Width of the MLP.",
        "n_prelude": "Layers before the loop.",
        "n_core": "Layers that are looped.",
        "n_coda": "Layers after the loop.",
        "n_kv_head": "Heads of keys and values; as many as n_head by default.",
        "d_state": "Width of the looped state and the core; d_model by default.",
        "core_n_head": "Heads of the core.",
        "core_d_ff": "Width of the core's MLP.",
        "injection": "How the looped state meets the prelude's output; docs/design.md has the formulas.",
        "prelude_norm": "Norm of the prelude's output before it is injected.",
        "readout": "The matrix C from the state to the coda.",
        "mlp": "The MLP's kind.",
        "residual_norm": "RDM's further norms, after attention and after the MLP.",
        "qk_norm": "Norm of queries and keys.",
        "value_embeddings": "Tables of values by token, added with a gate.",
        "tie_embeddings": "The head is the embedding.",
        "rope_base": "Of rotary positions.",
        "norm_eps": "Of every RMSNorm.",
        "value_gate_width": "Leading channels that feed the value gate.",
    },
    "OptimOverrides": {
        "lr": "Of both optimisers; then leave muon_lr and adamw_lr out.",
        "muon_lr": "Of Muon, which trains the layers' matrices.",
        "muon_momentum": "Of Muon.",
        "muon_weight_decay": "Cautious, decayed linearly to 0.",
        "adamw_lr": "Of AdamW, which trains the rest.",
        "adamw_beta1": "Of AdamW.",
        "adamw_beta2": "Of AdamW.",
        "adamw_eps": "Of AdamW.",
        "grad_clip": "Norm to which the whole gradient is cut.",
        "warmup_steps": "Steps in which the rate rises from 0.",
        "cooldown_share": "Of the steps, in which the rate falls linearly to 0.",
    },
}


def meaning(section: str, field: str) -> str:
    """One sentence; empty for a field that this file does not know."""
    return MEANINGS.get(section, {}).get(field) or _SHARED.get(field, "")
