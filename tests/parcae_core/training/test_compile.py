"""A compiled model meets every depth that is drawn with a handful of graphs of static shapes."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from parcae_core.depth import PoissonDepth
from parcae_core.errors import UserError
from parcae_core.model.parcae import build_model
from parcae_core.training.compile import MAX_TRAIN_GRAPHS, compile_model
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
    compile_model(models[0], **compilation)
    return models


def assert_equal_steps(models, steps, batch: int = 16, *, evaluated: bool = False) -> None:
    """Losses and every gradient of the two models, and the curve without gradient."""
    vocab = models[0].config.vocab_size
    for step in steps:
        numbers = torch.Generator().manual_seed(step)
        ids = torch.randint(0, vocab, (batch, SEQ_LEN), generator=numbers)
        ids = ids.to(models[0].embedding.weight.device)
        draw = DEPTH.sample(batch, seed=0, step=step)
        losses, curves = [], []
        for model in models:
            model.zero_grad()
            loss = model(ids, draw, targets=ids).loss
            loss.backward()
            losses.append(loss.item())
            if evaluated:
                state = torch.ones(*ids.shape, model.config.state_width, device=ids.device)
                with torch.no_grad():
                    walk = model.states(ids, state)
                    curves += [model.read_out(*next(walk)) for _ in range(3)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for a, b in zip(curves[:3], curves[3:], strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            # float32, other orders of summation; widths of 16 keep the sums short
            assert (a.grad - b.grad).abs().max() <= 1e-3 * b.grad.abs().max() + 1e-6, name


@pytest.mark.slow  # eleven graphs
def test_training_has_one_graph_for_each_shape_whatever_is_drawn(tiny):
    """The batch equals the width and the length: sizes that are equal by chance are not tied."""
    counter = Counter()
    models = pair(tiny(context=SEQ_LEN), backend=counter.backend)
    assert_equal_steps(models, range(20))
    # prelude, coda, the gradient's loop step, and every eighth of 16 sequences
    assert counter.n_graphs == MAX_TRAIN_GRAPHS == 11
    assert_equal_steps(models, range(20, 40))
    assert counter.n_graphs == MAX_TRAIN_GRAPHS


def test_a_small_batch_has_fewer_shapes_and_an_evaluation_adds_three(tiny):
    counter = Counter()
    models = pair(tiny(context=SEQ_LEN, n_core=1), backend=counter.backend)
    assert_equal_steps(models, range(8), batch=3)
    assert counter.n_graphs == 3 + 3
    assert_equal_steps(models, range(8, 11), batch=3, evaluated=True)
    assert counter.n_graphs == 3 + 3 + 3


@pytest.mark.slow
def test_inductor_asks_for_no_further_graph(tiny):
    counter = InductorCounter()
    models = pair(tiny(context=SEQ_LEN), backend=counter.backend)
    assert_equal_steps(models, range(12), batch=4)
    assert counter.n_graphs == 3 + 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_compiled_model_trains_and_evaluates_as_a_plain_one(tiny):
    models = pair(tiny(context=SEQ_LEN), device="cuda")
    assert_equal_steps(models, range(3), batch=4, evaluated=True)


def test_cuda_graphs_are_refused_where_there_is_no_cuda(tmp_path):
    import dataclasses

    execution = dataclasses.replace(EXECUTION, cuda_graphs=True)
    with pytest.raises(UserError, match=r"cuda_graphs=True on cpu; .*leave cuda_graphs off"):
        train(
            tiny_trial(), data_dir=write_data(tmp_path), run_dir=tmp_path / "run",
            execution=execution,
        )  # fmt: skip
