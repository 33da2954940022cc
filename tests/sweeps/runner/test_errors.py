"""Which failures another attempt may cure."""

from sweeps.runner.errors import environment


def test_a_gpu_without_room_is_the_systems_failure_behind_whatever_wraps_it():
    cause = RuntimeError("Triton Error [CUDA]: out of memory")
    wrapped = ValueError("evaluation failed")
    wrapped.__cause__ = cause
    assert environment(wrapped) is cause
    assert environment(RuntimeError("an illegal memory access was encountered")) is None
