"""The kernels pass Triton's compiler, not only its interpreter, on a machine without a GPU."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(device, tmp_path):
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_for_gpu"],
        env=clean | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in ("residual_norm", "loop_boundary", "value_gate", "relu_squared", "rope_qk_norm"):
        assert f"_{name}_fwd_kernel" in done.stdout
        assert f"_{name}_bwd_kernel" in done.stdout
    for name in ("product_epilogue", "lookup_bwd", "lookup_join"):
        assert f"_{name}_kernel" in done.stdout
