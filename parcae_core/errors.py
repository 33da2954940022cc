"""Errors a user can act on. The command line turns them into one message and exit code 2."""

# What the allocators, cuBLAS, cuDNN, NCCL and Triton say, none of them by a class of its own
_OUT_OF_MEMORY = (
    "out of memory",  # torch's allocator, AcceleratorError, Triton, NCCL
    "can't allocate memory",  # torch's CPU allocator
    "STATUS_ALLOC_FAILED",  # CUBLAS_, CUDNN_, CUSOLVER_
    "cublasCreate",  # cuBLAS is "not initialized" where its workspace does not fit
)


class UserError(ValueError):
    """Bad input: the message says where, what was found, what was needed and what to do."""


class OutOfMemory(UserError):
    """Training did not fit, whatever was tried; on a shared machine it may fit later, or elsewhere."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether what failed would have fitted with fewer sequences at a time, or fewer neighbours."""
    # torch.OutOfMemoryError by its name: these rooms are torch-free
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in _OUT_OF_MEMORY)
