"""What a model runs: chosen once, recorded, and refused with a reason where it cannot run."""

import os
import subprocess
import sys

import pytest
import torch

from parcae_core.errors import UserError
from parcae_core.kernels import choice, dispatch
from parcae_core.kernels.attention import backend_order, backends_taken, first_backend
from parcae_core.kernels.choice import ON_CPU, TORCH, Kernels, choose
from parcae_core.model.parcae import build_model
from parcae_core.training.compile import compile_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_runs_torch_unless_told(tiny, device):
    assert choose(CPU) == ON_CPU
    assert choose(CPU, "torch") == TORCH
    assert build_model(tiny(), seed=0).kernels == ON_CPU
    if dispatch.INTERPRETED:
        assert choose(CPU, "triton") == Kernels(ops="triton", mlp="joined", cross_entropy="torch")


@pytest.mark.parametrize(
    ("triton", "liger", "wanted"),
    [
        (object(), True, Kernels(ops="triton", mlp="joined", cross_entropy="liger")),
        (object(), False, Kernels(ops="triton", mlp="joined", cross_entropy="torch")),
        (None, False, TORCH),
    ],
)
def test_a_gpu_runs_what_is_installed(monkeypatch, triton, liger, wanted):
    monkeypatch.setattr(dispatch, "triton", triton)
    monkeypatch.setattr(choice, "has_liger", lambda: liger)
    assert choose(GPU) == wanted
    assert choose(GPU, width=4096).ops == choose(GPU, "torch").ops == "torch"


def test_what_cannot_run_is_refused(monkeypatch, tiny):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(UserError, match=r"CUDA device .* on cpu; use impl='torch'"):
        build_model(tiny(), seed=0, impl="triton")
    with pytest.raises(UserError, match="impl is 'fast'; it must be one of 'auto', 'torch'"):
        choose(CPU, "fast")


@pytest.mark.skipif(torch.version.cuda is not None, reason="a build that can use the kernels")
def test_a_build_for_cpus_is_spared_the_import():
    code = "import sys, parcae_core.training.train; sys.exit('triton' in sys.modules)"
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    assert subprocess.run([sys.executable, "-c", code], env=clean).returncode == 0


def test_a_compiled_model_keeps_its_kernels(tiny):
    model = build_model(tiny(), seed=0)
    kernels = Kernels(ops="triton", cross_entropy="liger")
    model.use(kernels)
    compile_model(model, backend="eager")
    assert model.kernels == kernels


def test_the_attention_of_every_width_is_named(tiny):
    with backend_order(CPU):
        assert backends_taken(tiny(), CPU, torch.float32) == "flash"
        # torch has no fused attention for such numbers
        assert backends_taken(tiny(), CPU, torch.complex64) == "math"


def test_cudnn_comes_first_from_hopper_on():
    assert [first_backend(c) for c in ((8, 0), (8, 9), (9, 0), (10, 0))] == [
        "flash", "flash", "cudnn", "cudnn",
    ]  # fmt: skip


@pytest.mark.gpu
def test_a_gpu_takes_the_first_backend_of_the_order(tiny):
    for first in ("flash", "cudnn"):
        with backend_order(GPU, first):
            assert backends_taken(tiny(d_model=128), GPU, torch.bfloat16) == first
    with backend_order(GPU):
        assert backends_taken(tiny(d_model=128), GPU, torch.float32) == "efficient"
