import pytest
import torch

from parcae_core.config import ModelConfig


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Makes a small model config; keyword arguments change it."""

    def make(**changes) -> ModelConfig:
        base = {
            "vocab_size": 19,
            "context": 12,
            "d_model": 16,
            "n_head": 2,
            "d_ff": 24,
            "n_prelude": 1,
            "n_core": 2,
            "n_coda": 1,
            "value_gate_width": 4,
        }
        return ModelConfig(**(base | changes))

    return make


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights with no zeros and no identities, so that every path carries signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
            if "norm" in name:
                p.add_(1.0)
