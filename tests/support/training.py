"""A run small enough for a test: a few hundred updates in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parcae_core.config import ModelConfig
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.depth import PoissonDepth
from parcae_core.result import Execution
from parcae_core.trial import DataConfig, EvalConfig, OptimConfig, Trial

CONTEXT = 16
EXECUTION = Execution(device="cpu", threads=1)


def tiny_trial(**changes: Any) -> Trial:
    """A looped model of 1/1/1 layers, depth Poisson(3), 12 updates of 8 sequences."""
    transformer = changes.pop("transformer", False)
    model = ModelConfig(
        **(
            {
                "vocab_size": 264,
                "context": CONTEXT,
                "d_model": 16,
                "n_head": 2,
                "d_ff": 32,
                "n_prelude": 1,
                "n_core": 1,
                "n_coda": 1,
                "value_gate_width": 4,
                "injection": "none" if transformer else "diagonal",
                "prelude_norm": not transformer,
            }
            | changes.pop("model", {})
        )
    )
    base = {
        "preset": "tiny",
        "model": model,
        "depth": None if transformer else PoissonDepth(mean_recurrence=3, mean_backprop_depth=2),
        "data": DataConfig(corpus="c", fingerprint="f", tokenizer="bytes", vocab_size=264),
        "optim": OptimConfig(),
        "evaluation": EvalConfig(loops=(1,) if transformer else (1, 3, 6), n_sequences=4),
        "n_steps": 12,
        "batch_sequences": 8,
        "context": CONTEXT,
        "seed": 0,
        "data_seed": 0,
    }
    return Trial(**(base | changes))


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_data(root: Path, row_tokens: int = CONTEXT + 1) -> Path:
    """A prepared byte corpus of counting sentences: easy to learn, a few thousand rows."""
    corpus = root / "corpus"
    corpus.mkdir(parents=True)
    for document in range(40):
        numbers = range(document, document + 120)
        text = "".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in numbers)
        (corpus / f"{document:02d}.txt").write_text(text)
    return prepare(resolve(str(corpus)), "bytes", row_tokens, root / "prepared")
