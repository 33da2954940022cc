"""What is asked of the machine."""

import time

from parcae_core.accounting import hardware


def test_a_driver_that_does_not_answer_holds_nothing_up(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 20\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(hardware, "NVIDIA_SMI_S", 0.2)
    hardware.local_gpu.cache_clear()
    began = time.monotonic()
    try:
        assert hardware.local_gpu() is None
    finally:
        hardware.local_gpu.cache_clear()
    assert time.monotonic() - began < 10
