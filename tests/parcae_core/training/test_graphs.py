"""The replayed step against the ordinary one; on a CPU its graphs are the functions themselves."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parcae_core.model.parcae import Parcae, build_model
from parcae_core.training.batching import depths_of_step
from parcae_core.training.gradient import local_gradient
from parcae_core.training.graphs import Graphs
from tests.parcae_core.conftest import randomise
from tests.support.training import tiny_trial

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


def gradients(trial, device, *, replayed, micro_batch, steps=(0, 1, 2)):
    """Losses, loop steps executed and gradients of a few steps, each from zero."""
    model = build_model(trial.model, seed=0)
    randomise(model)
    model.to(device)
    graphs = Graphs(model, trial) if replayed else None
    found = []
    for step in steps:
        rows = torch.randint(
            0, trial.model.vocab_size, (trial.batch_sequences, trial.context + 1),
            generator=torch.Generator().manual_seed(step),
        )  # fmt: skip
        local = local_gradient(
            model, trial, rows=rows, draw=depths_of_step(trial, step),
            share=np.arange(trial.batch_sequences), micro_batch=micro_batch, step=step,
            graphs=graphs,
        )  # fmt: skip
        found.append((local, [p.grad.clone() for p in model.parameters()]))
        model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("micro_batch", [8, 4, 3], ids=["whole", "halves", "a portion left over"])
@pytest.mark.parametrize("transformer", [False, True], ids=["looped", "transformer"])
def test_a_replayed_step_gives_the_losses_and_gradients(device, micro_batch, transformer):
    trial = tiny_trial(transformer=transformer)
    plain, replayed = (
        gradients(trial, device, replayed=r, micro_batch=micro_batch) for r in (False, True)
    )
    for (a, grads_a), (b, grads_b) in zip(plain, replayed, strict=True):
        assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-6)
        assert b.core_sequence_steps >= a.core_sequence_steps
        for x, y in zip(grads_a, grads_b, strict=True):
            # float32; sums over other numbers of rows
            assert (x - y).abs().max() <= 1e-5 * x.abs().max() + 1e-8


class Operations(TorchDispatchMode):
    """Counts every operation below autograd, and those that hand a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.n = self.n_waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += 1
        self.n_waits += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("replayed", [False, True])
def test_forward_and_backward_ask_the_device_for_no_number(replayed, monkeypatch):
    """On a GPU each such number waits for all that was launched before."""
    monkeypatch.setattr(Parcae, "_check", lambda *_: None)  # looks at the ids on a CPU alone
    trial = tiny_trial()
    model = build_model(trial.model, seed=0)
    rows = torch.randint(0, 264, (8, 17), generator=torch.Generator().manual_seed(0))
    graphs = Graphs(model, trial) if replayed else None
    with Operations() as seen:
        local_gradient(
            model, trial, rows=rows, draw=depths_of_step(trial, 1), share=np.arange(8),
            micro_batch=4, step=1, graphs=graphs,
        )  # fmt: skip
    assert seen.n > 100
    assert seen.n_waits == 0


def test_gradients_add_to_those_that_are_there():
    trial = tiny_trial()
    (once,) = gradients(trial, "cpu", replayed=True, micro_batch=8, steps=(0,))
    model = build_model(trial.model, seed=0)
    randomise(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    rows = torch.randint(0, 264, (8, 17), generator=torch.Generator().manual_seed(0))
    local_gradient(
        model, trial, rows=rows, draw=depths_of_step(trial, 0), share=np.arange(8),
        micro_batch=8, step=0, graphs=Graphs(model, trial),
    )  # fmt: skip
    for p, alone in zip(model.parameters(), once[1], strict=True):
        assert torch.allclose(p.grad, alone + 1, rtol=0, atol=1e-6)
