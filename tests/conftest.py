"""What all tests share: Triton's interpreter where there is no GPU, the mark `gpu`, and names."""

import importlib.util
import os

import pytest

_SWITCH = "TRITON_INTERPRET"
# Triton reads the switch when a kernel is decorated, that is, when its file is first imported by
# any test; tests/parcae_core/kernels/ needs it, and no other test may meet a kernel without it.
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # asking torch would import it for every test
_switched_on = not any(map(os.path.exists, _GPUS)) and os.environ.get(_SWITCH) is None
if _switched_on:
    os.environ[_SWITCH] = "1"


def pytest_collection_finish(session):
    # all files are imported by now; processes that tests start are to run as a user's would
    if _switched_on:
        os.environ.pop(_SWITCH, None)


def pytest_make_parametrize_id(val, argname):
    # Bytes make no name: gzip writes the second into its header, so that processes of one run that
    # import a file in two different seconds would collect tests of different names, and stop.
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked or _has_gpu():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
