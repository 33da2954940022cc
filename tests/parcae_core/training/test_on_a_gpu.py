"""What only a card shows of a training run; a session on one runs these first."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist

from parcae_core.model.parcae import build_model
from parcae_core.result import Execution, Interrupted
from parcae_core.training.batching import depths_of_step
from parcae_core.training.gradient import local_gradient
from parcae_core.training.optim import Optimizer
from parcae_core.training.train import train
from parcae_core.trial import OptimConfig
from tests.parcae_core.conftest import randomise
from tests.support.training import metrics, tiny_trial, write_data
from tests.support.worker import Worker

pytestmark = pytest.mark.gpu
ON_GPU = Execution(device="cuda", log_every_steps=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def assert_same_evaluation(a, b, rel=1e-3):
    """Equal to rounding: flash's backward adds by atomics."""
    for row, other in zip(a.evaluation, b.evaluation, strict=True):
        assert row.val_loss == pytest.approx(other.val_loss, rel=rel)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("cuda_graphs", [False, True], ids=["", "replayed"])
def test_a_run_that_was_stopped_goes_on_and_is_evaluated(
    data_dir, tmp_path, precision, cuda_graphs
):
    trial = tiny_trial(precision=precision)
    execution = dataclasses.replace(ON_GPU, cuda_graphs=cuda_graphs)
    whole = train(trial, data_dir=data_dir, run_dir=tmp_path / "whole", execution=execution)
    assert (whole.status, whole.kernels) == ("done", "triton")
    assert whole.peak_gpu_bytes > 0
    made = []
    stopping = dataclasses.replace(execution, stop_requested=lambda: len(made) >= 5)
    with pytest.raises(Interrupted):
        train(
            trial, data_dir=data_dir, run_dir=tmp_path / "cut", on_report=made.append,
            execution=stopping,
        )  # fmt: skip
    resumed = train(trial, data_dir=data_dir, run_dir=tmp_path / "cut", execution=execution)
    assert resumed.n_resumed == 1
    assert_same_evaluation(resumed, whole)
    losses = [[line["train/loss"] for line in metrics(tmp_path / n)] for n in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_memory_that_runs_out_is_met_with_smaller_portions(data_dir, tmp_path):
    wide = {"d_model": 128, "d_ff": 512, "value_gate_width": 32}
    trial = tiny_trial(n_steps=3, batch_sequences=2048, model=wide)
    whole = train(trial, data_dir=data_dir, run_dir=tmp_path / "whole", execution=ON_GPU)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    little = torch.cuda.memory_reserved() + whole.peak_gpu_bytes * 0.6
    auto = dataclasses.replace(ON_GPU, micro_batch_sequences="auto")
    torch.cuda.set_per_process_memory_fraction(little / total)
    try:
        halved = train(trial, data_dir=data_dir, run_dir=tmp_path / "cut", execution=auto)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halved.n_out_of_memory >= 1
    assert halved.micro_batch_sequences == 2048 >> halved.n_out_of_memory
    assert_same_evaluation(halved, whole)


def test_the_optimisers_make_the_updates_that_a_cpu_makes(tiny):
    here = build_model(tiny(d_model=64, d_ff=128, value_gate_width=16), seed=0)
    randomise(here)
    there = copy.deepcopy(here).cuda()
    before = copy.deepcopy(here.state_dict())
    generator = torch.Generator().manual_seed(0)
    optimizers = [Optimizer(m, OptimConfig(), n_steps=10) for m in (here, there)]
    for step in range(3):
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.cuda()
        for optimizer in optimizers:
            optimizer.update(step)
    for (name, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        moved = (p - before[name]).norm()
        off = ((q.cpu() - p).norm() / moved).item()
        # Muon's polar factors are made in bfloat16 on a GPU, whose spacing is 8e-3
        assert off <= (3e-2 if optimizers[0].groups[name] == "muon" else 1e-4), name


@pytest.mark.parametrize("transformer", [False, True])
def test_forward_and_backward_never_wait_for_the_device(transformer):
    trial = tiny_trial(transformer=transformer)
    model = build_model(trial.model, seed=0)
    randomise(model)
    model.cuda().use(dataclasses.replace(model.kernels, ops="triton", mlp="joined"))
    rows = torch.randint(0, 264, (8, 17), generator=torch.Generator().manual_seed(0)).pin_memory()

    def step(number: int) -> None:
        local_gradient(
            model, trial, rows=rows, draw=depths_of_step(trial, number), share=np.arange(8),
            micro_batch=8, step=number,
        )  # fmt: skip

    step(0)  # loads and compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_processes_share_a_card(data_dir, tmp_path):
    """By gloo: NCCL takes one process a card."""
    trial = tiny_trial()
    alone = Worker(trial, data_dir, tmp_path / "alone", device="cuda").result()
    both = [
        Worker(trial, data_dir, tmp_path / "both", rank=r, n_processes=2, device="cuda")
        for r in range(2)
    ]
    first, second = (w.result() for w in both)
    assert first["n_processes"] == 2
    assert first["evaluation"] == second["evaluation"]
    for a, b in zip(alone["evaluation"], first["evaluation"], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-3)


def test_nccl_runs_with_one_process(tmp_path):
    device = torch.device("cuda", 0)
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1, device_id=device
    )
    try:
        values = torch.arange(3.0, device=device)
        dist.all_reduce(values)
        box = [None]
        dist.all_gather_object(box, {"loss": 1.5})
    finally:
        dist.destroy_process_group()
    assert values.tolist() == [0, 1, 2]
    assert box == [{"loss": 1.5}]
