"""A sweep small enough for a test: real text, real trials, a second each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from parcae_core.trial import DataConfig
from sweeps.design.plan import Plan, plan
from sweeps.design.spec import parse_spec

DATA = DataConfig(corpus="text", fingerprint="f" * 64, tokenizer="bytes", vocab_size=259)

SPEC: dict[str, Any] = {
    "name": "tiny",
    "design": "isoflop",
    "budgets_flops": [4e8, 8e8],
    "mean_recurrence": [1, 2],
    "preset": "nano",
    "model": {"d_model": 16, "d_ff": 32, "value_gate_width": 4, "context": 16},
    "batch_sequences": 4,
    "data": {"corpus": "text"},
    "evaluation": {"loops": [1, 2, 3], "n_sequences": 4},
    "min_steps": 5,
    "wandb": {"mode": "disabled"},
}


def spec_dict(**changes: Any) -> dict[str, Any]:
    """SPEC with keys replaced, or removed when the value is None."""
    return {k: v for k, v in (SPEC | changes).items() if v is not None}


def tiny_plan(**changes: Any) -> Plan:
    """A plan that reads no corpus."""
    return plan(parse_spec(spec_dict(**changes), "tiny.yaml"), DATA, where="tiny.yaml")


def write_spec(folder: Path, **changes: Any) -> Path:
    """A spec file, and the corpus beside it that it names."""
    corpus = folder / "text"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        for i in range(40):
            words = (f"line {j} of text {i}: {(i * 7919 + j * 104729) % 9973}" for j in range(60))
            (corpus / f"{i:02d}.txt").write_text("\n".join(words))
    path = folder / f"{changes.get('name', 'tiny')}.yaml"
    path.write_text(yaml.safe_dump(spec_dict(**({"data": {"corpus": str(corpus)}} | changes))))
    return path
