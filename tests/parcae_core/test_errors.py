"""What counts as a lack of memory, by the words of those who run out of it."""

import pytest
import torch

from parcae_core.errors import is_out_of_memory

SAID = [
    torch.OutOfMemoryError("Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSgemm( handle, opa, opb)`"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", SAID, ids=lambda e: str(e)[:40])
def test_what_the_libraries_say(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("out of memory with micro_batch_sequences=1"),  # our own words to a user
    ],
    ids=str,
)
def test_what_is_another_failure(error):
    assert not is_out_of_memory(error)
