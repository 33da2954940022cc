"""Compiled blocks meet every batch size that depths draw with three graphs per kind of block."""

import dataclasses

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from parcae_core.depth import PoissonDepth
from parcae_core.errors import UserError
from parcae_core.model.parcae import build_model
from parcae_core.result import Execution
from parcae_core.training.compile import GRAPHS_PER_KIND, compile_blocks, n_kinds
from parcae_core.training.train import train
from tests.parcae_core.conftest import randomise
from tests.support.training import EXECUTION, tiny_trial, write_data

# torch's compiler warns about torch's own code, and fails when that is made an error
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
SEQ_LEN = 16
DEPTH = PoissonDepth(mean_recurrence=4, mean_backprop_depth=2)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """Each test starts without graphs, and with torch's own limits at its end."""
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


class Counter:
    """A backend that runs AOT's graphs as they are, and counts the forward ones."""

    def __init__(self) -> None:
        self.n_graphs = 0
        self.backend = aot_autograd(fw_compiler=self._forward, bw_compiler=lambda graph, _: graph)

    def _forward(self, graph, _):
        self.n_graphs += 1
        return graph


class InductorCounter:
    """Inductor, and how often it was asked."""

    def __init__(self) -> None:
        self.n_graphs = 0

    def backend(self, graph, inputs):
        from torch._inductor.compile_fx import compile_fx

        self.n_graphs += 1
        return compile_fx(graph, inputs)


def pair(config, device="cpu", **compilation):
    """The same weights twice, compiled and plain."""
    models = [build_model(config, seed=0) for _ in range(2)]
    for model in models:
        randomise(model)
        model.to(device)
    compile_blocks(models[0], **compilation)
    return models


def assert_equal_steps(models, batches) -> None:
    """Losses and every gradient of the two models, and the curve without gradient."""
    vocab = models[0].config.vocab_size
    for step, batch in enumerate(batches):
        numbers = torch.Generator().manual_seed(step)
        ids = torch.randint(0, vocab, (batch, SEQ_LEN), generator=numbers)
        ids = ids.to(models[0].embedding.weight.device)
        draw = DEPTH.sample(batch, seed=0, step=step)
        losses = []
        for model in models:
            model.zero_grad()
            loss = model(ids, draw, targets=ids).loss
            loss.backward()
            with torch.no_grad():
                losses.append((loss.item(), model(ids, 3, targets=ids).loss.item()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            # float32, other orders of summation; widths of 16 keep the sums short
            assert (a.grad - b.grad).abs().max() <= 1e-3 * b.grad.abs().max() + 1e-6, name


@pytest.mark.parametrize("first", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_every_batch_size_and_depth_runs_on_three_graphs_per_kind(tiny, first):
    """The batch equals the width, the length and the heads in turn: no two sizes may be tied."""
    counter = Counter()
    models = pair(tiny(context=SEQ_LEN, n_prelude=2, n_coda=2), backend=counter.backend)
    assert n_kinds(models[0]) == 2
    assert_equal_steps(models, [first, 5, 1])
    warm = counter.n_graphs
    assert_equal_steps(models, [1, 2, 16, 3, 8, 4, 1, 7])
    assert counter.n_graphs == warm <= GRAPHS_PER_KIND * n_kinds(models[0])


@pytest.mark.slow  # four kinds to compile
def test_a_core_of_another_width_adds_kinds_and_not_graphs_per_kind(tiny):
    counter = Counter()
    models = pair(tiny(context=SEQ_LEN, d_state=32, n_core=2, n_prelude=2), backend=counter.backend)
    assert n_kinds(models[0]) == 4
    assert_equal_steps(models, [4, 1, 3])
    assert counter.n_graphs <= GRAPHS_PER_KIND * 4


@pytest.mark.slow
@pytest.mark.parametrize("first", [6, 1])
def test_inductor_asks_for_no_further_graph(tiny, first):
    counter = InductorCounter()
    models = pair(tiny(context=SEQ_LEN), backend=counter.backend)
    assert_equal_steps(models, [first, 5, 1, 2, 3, 16, 1])
    assert counter.n_graphs <= GRAPHS_PER_KIND * n_kinds(models[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_on_a_gpu_compiled_blocks_train_and_evaluate_as_plain_ones(tiny, cuda_graphs):
    models = pair(tiny(context=SEQ_LEN), device="cuda", cuda_graphs=cuda_graphs)
    assert_equal_steps(models, [4, 1, 3, 4, 2])


def test_cuda_graphs_are_refused_where_there_is_no_cuda(tiny, tmp_path):
    with pytest.raises(UserError, match=r"cuda_graphs=True on cpu; .*leave cuda_graphs off"):
        compile_blocks(build_model(tiny(), seed=0), cuda_graphs=True)
    with pytest.raises(ValueError, match="graphs are of compiled blocks"):
        Execution(cuda_graphs=True)
    execution = dataclasses.replace(EXECUTION, compile=True, cuda_graphs=True)
    with pytest.raises(UserError, match="cuda_graphs=True on cpu"):
        train(
            tiny_trial(), data_dir=write_data(tmp_path), run_dir=tmp_path / "run",
            execution=execution,
        )  # fmt: skip
