import pytest
import torch

from parcae_core.kernels import dispatch


@pytest.fixture
def device() -> str:
    """Where kernels run: a GPU, or the CPU by Triton's interpreter."""
    if dispatch.triton is None:
        pytest.skip("triton is not installed")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    if dispatch.INTERPRETED:  # some of Triton's functions read it again when a kernel runs
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def poison_empty(monkeypatch):
    """torch.empty hands out NaN, so that an element a kernel leaves unwritten is seen."""
    for name in ("empty", "empty_like"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, real=real, **k: real(*a, **k).fill_(torch.nan))
