"""One of the processes that train a trial together: started by `sweeps.runner.process_group`, ends with it.

    python -m sweeps.runner.process_main PARENT_PID WRITE_FD

stdin brings one line of JSON, the task, and later perhaps the line "stop"; its end means that the
parent is gone. Answers go to WRITE_FD as lines of JSON, since libraries print to stdout:

    {"report": {...}}       a line of the metrics, from the first process
    {"result": {...}}       the first process's TrainResult; null from the others
    {"interrupted": text, "result": {...}}      stopped on request, a checkpoint has been written
    {"failed": {...}}       what was raised
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from parcae_core.result import Execution, Interrupted

GROUP_TIMEOUT = timedelta(hours=1)  # of one exchange, an evaluation at many loops included
_PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


def main() -> int:
    """Train as the task says; the exit code is 0 whenever a last message was sent."""
    parent, answers = int(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w", buffering=1)
    die_with(parent)
    lock = threading.Lock()

    def send(**message: Any) -> None:
        with lock:
            answers.write(json.dumps(message) + "\n")

    task = json.loads(sys.stdin.readline())
    stop = threading.Event()
    threading.Thread(target=_receive_stop, args=(stop,), daemon=True).start()
    try:
        result = train_as(task, stop.is_set, lambda line: send(report=line))
    except Interrupted as stopped:
        send(interrupted=str(stopped), result=stopped.so_far and stopped.so_far.to_dict())
    except Exception as error:  # noqa: BLE001 - the parent decides what it means
        send(failed=described(error))
    else:
        send(result=result if task["rank"] == 0 else None)
    answers.close()
    return 0


def die_with(parent: int) -> None:
    """See to it that this process does not outlive its parent, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _receive_stop(stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
    os._exit(1)  # where there is no prctl: stdin ends with the parent


def train_as(
    task: dict[str, Any], stop_requested: Callable[[], bool], report: Callable[[dict], None]
) -> dict[str, Any]:
    """Join the others and train; the result as plain data."""
    import torch.distributed as dist

    from parcae_core.device import resolve_device
    from parcae_core.training.train import train
    from parcae_core.trial import trial_from_dict

    os.environ["LOCAL_RANK"] = str(task["local_rank"])
    if task["one_machine"]:
        # the machine's own name may not resolve; what the user has set stays
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    execution = Execution(**task["execution"], stop_requested=stop_requested)
    on_gpu = execution.device.startswith("cuda")
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=task["meeting"],
        rank=task["rank"],
        world_size=task["n"],
        # the others wait while the first evaluates; NCCL's own ten minutes would end them
        timeout=GROUP_TIMEOUT,
        device_id=resolve_device(execution.device, local_rank=task["local_rank"])
        if on_gpu
        else None,
    )
    try:
        result = train(
            trial_from_dict(task["trial"]),
            data_dir=Path(task["data_dir"]),
            run_dir=Path(task["run_dir"]),
            on_report=report,
            execution=execution,
        )
    finally:
        dist.destroy_process_group()
    return result.to_dict()


def described(error: BaseException) -> dict[str, Any]:
    """An exception as plain data: its reason, its traceback, and whose fault it may be."""
    from sweeps.runner.errors import environment

    cause = environment(error)
    return {
        "reason": f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exc(),
        "environment": None if cause is None else str(cause),
        "peer": _lost_a_peer(error),
    }


def _lost_a_peer(error: BaseException) -> bool:
    """Whether it only says that another process is gone, which that one's parent knows better."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    # gloo raises plain RuntimeErrors: "[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    return isinstance(error, RuntimeError) and "gloo" in str(error)


if __name__ == "__main__":
    sys.exit(main())
