"""A Ray cluster to run on: a private one on this machine, or one that is there already."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from parcae_core.cpus import usable_cpus
from parcae_core.errors import UserError
from sweeps.runner.signals import gone_processes
from sweeps.storage.objects import is_url
from sweeps.storage.tempdir import OwnedFolder
from sweeps.waiting import say

# Ray puts sockets under its folder, and a socket's path may have 107 bytes; Ray's own part of it
# is about 70
MAX_TEMP_PATH = 36
OBJECT_STORE_BYTES = 100 << 20  # nothing of size goes through it; Ray's default is 30 % of memory
START_S = 180.0  # for a private cluster to start, as RAY_agent_register_timeout_ms below
SHUTDOWN_S = 10.0  # of a cluster that is lost
PROBE_S = 4.0  # for the port, and again for what listens there

# What the user has set stays
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a spec keep their meaning
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: no output of Tune's own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no second copy of the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops with a checkpoint
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_PRIVATE_DEFAULTS = {
    # Strictly in order: longest first. A cluster that adds nodes would add them one by one
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_agent_register_timeout_ms": "180000",  # Ray's 30 s are too few on a busy machine
}
# What keeps a private cluster private, whatever is set
_CLOSED = {
    # Despite its name: on Linux too, Ray then binds every port to loopback instead of to all
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
_OF_ANOTHER_CLUSTER = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


@contextmanager
def ray_cluster(
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    *,
    send_aws_keys: bool = False,
) -> Iterator[None]:
    """Connect, or start a private cluster, and leave nothing behind.

    Args:
        address: of a running cluster ("auto", host:port); None starts a private one.
        cpus: cores the private one offers; None: all that this process may use.
        gpus: GPUs that it offers; None: what Ray finds.
        send_aws_keys: let Tune pass the AWS keys of this environment to the workers, as it does by
            itself. Ray writes them into its logs on every node.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    if address is None:
        with _private_cluster(cpus, gpus):
            yield
        return
    with _environment(_DEFAULTS, {}, ()), _ray(send_aws_keys=send_aws_keys) as init:
        where = require_reachable(address)
        try:
            init(address=where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--address {address}: no connection to a Ray cluster ({error}). Check the "
                "address and, where the cluster asks for one, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            ) from error
        yield


@contextmanager
def _private_cluster(cpus: int | None, gpus: int | None) -> Iterator[None]:
    """On loopback, in a folder that only this user can enter, for who has the token in it.

    Without the token any other user of the machine could replace the pickled code in it, and so run
    what they like as this one.
    """
    with OwnedFolder("pc-", _short_base()) as folder, _ended_groups() as processes:
        token = folder / "token"
        with open(token, "x", opener=functools.partial(os.open, mode=0o600)) as file:
            file.write(secrets.token_hex(32))
        closed = _CLOSED | {"RAY_AUTH_TOKEN_PATH": str(token)}
        with (
            _environment(_DEFAULTS | _PRIVATE_DEFAULTS, closed, _OF_ANOTHER_CLUSTER),
            _ray(send_aws_keys=False) as init,  # its workers inherit this environment
        ):
            with _patient_start(processes):
                try:
                    init(
                        address="local",
                        num_cpus=cpus or usable_cpus(),
                        num_gpus=gpus,
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        _temp_dir=str(folder / "r"),  # Ray opens it to all; ours is around it
                    )
                except Exception as error:
                    if "timed out during startup" not in str(error):
                        raise
                    raise UserError(
                        f"Ray did not start on this machine in {START_S:.0f} s; it is very busy, or short "
                        "of memory. Nothing was run; try again, or --no-ray."
                    ) from error
            yield


@contextmanager
def _environment(
    defaults: dict[str, str], fixed: dict[str, str], without: Sequence[str]
) -> Iterator[None]:
    """Variables for Ray and Tune; those in `defaults` only where the user has set none."""
    before = {name: os.environ.get(name) for name in (*defaults, *fixed, *without)}
    for name in without:
        os.environ.pop(name, None)
    for name, value in defaults.items():
        if os.environ.setdefault(name, value) != value:
            say(f"{name}={os.environ[name]} of this environment is kept; it would be {value} here")
    os.environ.update(fixed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _ray(*, send_aws_keys: bool) -> Iterator[Callable[..., Any]]:
    """`ray.init` with what every cluster gets; whatever it started is ended."""
    import ray
    from ray.tune.execution import class_cache

    _read_settings()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `progress` says it in one line
    passed_on = set(class_cache.ENV_VARS_TO_PROPAGATE)
    if not send_aws_keys:
        class_cache.ENV_VARS_TO_PROPAGATE.difference_update(AWS_KEYS)
    try:
        yield functools.partial(ray.init, log_to_driver=False, logging_level="ERROR")
    finally:
        _shut_down()
        class_cache.ENV_VARS_TO_PROPAGATE.update(passed_on)


def _shut_down() -> None:
    """`ray.shutdown`, which waits for a lost cluster for ever; then the process goes on without."""
    import ray

    node = ray._private.worker._global_node
    if node is None or not gone_processes(node):
        ray.shutdown()
        return
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(SHUTDOWN_S)
    if thread.is_alive():
        node.kill_all_processes(check_alive=False)  # what it started; nothing of others' clusters


def must_send_aws_keys(place: str) -> bool:
    """Whether workers elsewhere need the keys of this environment: for an object store, and only if
    neither a role nor a profile gives any here."""
    if not is_url(place) or not any(os.environ.get(name) for name in AWS_KEYS):
        return False
    from botocore.session import Session

    session = Session()
    session.get_component("credential_provider").remove("env")
    if session.get_credentials() is not None:
        return False
    say(
        "the AWS keys of this environment are sent to the workers, and Ray logs them on every node; "
        "with a role or a profile there they are not"
    )
    return True


def _read_settings() -> None:
    """Ray reads its variables and token once a process; a process may run several sweeps."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _ended_groups() -> Iterator[list[subprocess.Popen]]:
    """Processes whose groups are ended with the block, if anything is left of them.

    A raylet that dies leaves its agents behind, which would write in a folder that is gone.
    """
    processes: list[subprocess.Popen] = []
    try:
        yield processes
    finally:
        for process in processes if sys.platform == "linux" else ():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)


@contextmanager
def _patient_start(started: list[subprocess.Popen]) -> Iterator[None]:
    """Fewer of Ray's processes, in sessions of their own, and more time for them to start.

    A signal to our group, or a terminal that closes, then reaches the driver alone, and trials can write
    a checkpoint. On Linux only: elsewhere Ray's reaper ends them by their group. Left out are the
    autoscaler, the log monitor and the dashboard's server, which have nothing to do here and take the CPU
    that the raylet's agents need: it dies if they take 15 s to start. Ray's own 30 s for the raylet itself
    are too few on a busy machine.

    Args:
        started: gets the processes.
    """
    from ray._private import parameter, services

    own = services.ConsolePopen, services.get_node, services.start_api_server, parameter.RayParams
    deadline = time.monotonic() + START_S

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        options["start_new_session"] = sys.platform == "linux"
        started.append(own[0](*arguments, **options))
        return started[-1]

    def get_node(*arguments: Any) -> Any:
        while True:
            try:
                return own[1](*arguments)
            except RuntimeError:  # the raylet has not registered yet
                if time.monotonic() > deadline or any(p.poll() is not None for p in started):
                    raise
                time.sleep(0.1)

    services.ConsolePopen, services.get_node = start, get_node
    services.start_api_server = lambda *_, **__: ("", None)
    parameter.RayParams = functools.partial(own[3], no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        services.ConsolePopen, services.get_node = own[:2]
        services.start_api_server, parameter.RayParams = own[2:]


def require_reachable(address: str) -> str:
    """Ask whether a cluster is there; Ray itself would try for a quarter of an hour.

    Returns:
        The address as host:port.

    Raises:
        UserError: within 10 s, with what was found.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    if address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: is a dashboard's; `parcae submit` takes it. Here the cluster's own "
            "is needed, host:6379 as `ray start` printed it, or auto on its head."
        )
    if "://" in address:  # Ray Client's; it has a time limit of its own
        return address
    try:
        where = canonicalize_bootstrap_address_or_die(address)
    except (ConnectionError, OSError, ValueError) as error:
        raise UserError(f"--address {address}: {' '.join(str(error).split())}") from error
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    # a port that is none, a name that no host has
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nobody answers at {where} ({error}). Start the cluster "
            "(`ray up`, or `ray start --head`), or check the address and the network."
        ) from error
    if os.environ.get("RAY_USE_TLS", "0") in ("0", "") and not _speaks_grpc(where):
        raise UserError(
            f"--address {address}: what answers at {where} is no Ray cluster; its port is the one "
            "that `ray start` printed, 6379 by default (8265 is the dashboard's)."
        )
    return where


def _speaks_grpc(where: str) -> bool:
    import grpc

    with grpc.insecure_channel(where) as channel:
        try:
            grpc.channel_ready_future(channel).result(PROBE_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _short_base() -> str:
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(base) <= MAX_TEMP_PATH - len("/pc-12345678/r"):
            return base
    raise UserError(
        f"the folder for temporary files ({tempfile.gettempdir()}) has too long a path for Ray's "
        "sockets; set TMPDIR to a shorter one."
    )
