"""A sweep whose driver lives on a Ray cluster: the client of Ray Jobs that the command line uses."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from parcae_core.errors import UserError
from sweeps.runner.cluster.package import Package

# Between SIGTERM and SIGKILL when a job is stopped: trials write a checkpoint in it. Ray's is 3 s.
STOP_GRACE_S = 120
AGENT_WAIT_S = 60
STATE_KEY = "parcae_sweep"


@contextmanager
def connected(address: str) -> Iterator[JobSubmissionClient]:
    """A client of the cluster's dashboard.

    Raises:
        UserError: whatever goes wrong between here and there, also within the block.
    """
    if address.startswith("ray://"):  # which would be tried for 30 s
        raise UserError(
            f"--address {address}: is Ray Client's; give the dashboard's, http://host:8265."
        )
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # its upload notes
    try:
        yield JobSubmissionClient(address)
    except UserError:
        raise
    # requests raises OSErrors
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        text = re.sub(r"\s+", " ", str(error)).strip(" .")
        raise UserError(
            f"--address {address}: {text[:300]}. Check the address, that `ray dashboard` is running, "
            "and, where the cluster asks for one, RAY_AUTH_TOKEN_PATH with RAY_AUTH_MODE=token."
        ) from error


def submit(
    client: JobSubmissionClient,
    name: str,
    command: Sequence[str],
    package: Package,
    variables: Mapping[str, str],
) -> str:
    """Send a folder and run a command of ours in it; the job's id.

    The job has its name from us, so that a request repeated for want of an answer starts no second
    driver.

    Args:
        name: of the sweep.
        command: what follows `parcae`.
        variables: sent with it, beside the commit.
    """
    stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)}
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    deadline = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join(["python", "-m", "sweeps.cli", *command]),
                submission_id=job,
                runtime_env={
                    "working_dir": str(package.folder),
                    "excludes": list(package.excludes),
                    "env_vars": stop | package.commit | variables,
                },
                metadata={STATE_KEY: name},
                entrypoint_num_cpus=0,
            )
        except (OSError, RuntimeError) as error:
            if f"{job} already exists" in str(error):
                return job  # the request came through, its answer did not
            # A head that has only just started has no job agent, and a busy one drops connections
            unanswered = isinstance(error, OSError) or "No available agent" in str(error)
            if not unanswered or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def newest(client: JobSubmissionClient, sweep: str) -> str:
    """The id of a sweep's newest job.

    Raises:
        UserError: if it has none.
    """
    jobs = [j for j in client.list_jobs() if (j.metadata or {}).get(STATE_KEY) == sweep]
    if not jobs:
        raise UserError(f"{sweep}: no job of that sweep on this cluster; start it: parcae submit.")
    return max(jobs, key=lambda j: j.start_time or 0).submission_id


def wait(client: JobSubmissionClient, job: str, timeout_s: float = 180.0) -> None:
    """Wait until a job has ended.

    Raises:
        RuntimeError: if it has not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise RuntimeError(
                f"{job} did not end within {timeout_s:.0f} s; is some node too busy?"
            )
        time.sleep(0.5)


def follow(client: JobSubmissionClient, job: str) -> None:
    """Show a job's log on stderr until it ends."""

    async def lines() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", file=sys.stderr, flush=True)

    asyncio.run(lines())


def line_of(client: JobSubmissionClient, job: str, *, message: bool = True) -> str:
    """A job's state in a line."""
    info: Any = client.get_job_info(job)
    text = (info.message or "") if message else ""
    return f"{job}: {info.status.value.lower()}: {text}".rstrip(": ")


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """0 if the job succeeded, else its driver's exit code."""
    info: Any = client.get_job_info(job)
    return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1
