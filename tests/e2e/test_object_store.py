"""A sweep through Ray into a real S3 server that fails every fifth request, its worker killed."""

import os
import signal
import time
import uuid

import pytest

from sweeps.records import records_of
from sweeps.storage.uploads import checkpoints_in
from sweeps.store import Store, open_sweep
from tests.e2e.test_kills import COMPARED, finish, run_alone, start
from tests.support.e2e_driver import first_with_a_checkpoint
from tests.support.s3_server import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(spec, records) of the trials run one after the other in this process, on its disk."""
    return run_alone(tmp_path_factory.mktemp("undisturbed"), n_tokens=64 * 1500)


@pytest.fixture
def s3(monkeypatch):
    """(place of its own, server): what a node keeps for one test is not another's."""
    import fsspec

    with serving("sweeps") as (_, server, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://sweeps/{uuid.uuid4().hex[:8]}", server
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def sweep_with_checkpoints(process, out: str, n: int = 2):
    """The sweep, once `n` of its trials have a checkpoint in the store."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.3)
        try:
            store = open_sweep("tiny", out)
        except ValueError:
            continue
        trials = store.stored_trials()
        ready = [t for t in trials if checkpoints_in(store.storage.objects, t.trial_id)]
        if len(ready) >= n:
            return store, ready
    raise AssertionError("no checkpoints in the store in time")


def require_same(store, undisturbed) -> None:
    store.refresh()
    assert records_of(store)[COMPARED].equals(undisturbed[1])
    assert any(store.result(t).n_resumed > 0 for t in store.stored_trials())


@pytest.mark.parametrize("nodes", [(), ("node",)], ids=["worker", "node"])
def test_what_is_killed_goes_on_from_the_store(s3, undisturbed, nodes):
    out, server = s3
    server.refuse_every = 5
    process = start(undisturbed[0], out, *nodes)
    if not nodes:
        sweep_with_checkpoints(process, out)
        while (worker := first_with_a_checkpoint(Store(out, "tiny"))) is None:
            time.sleep(0.2)
        os.kill(worker, signal.SIGKILL)
    err = finish(process)
    assert ("killing raylet" if nodes else "worker lost") in err
    assert server.refused > 20
    server.refuse_every = None
    require_same(open_sweep("tiny", out), undisturbed)


def test_a_killed_driver_is_started_again(s3, undisturbed):
    out, server = s3
    server.refuse_every = 5
    process = start(undisturbed[0], out)
    store, _ = sweep_with_checkpoints(process, out)
    process.kill()
    process.communicate()
    finish(start(undisturbed[0], out))
    server.refuse_every = None
    require_same(store, undisturbed)


def test_a_request_to_stop_leaves_every_trial_planned_with_a_checkpoint_in_the_store(
    s3, undisturbed
):
    out, _ = s3
    process = start(undisturbed[0], out)
    store, _ = sweep_with_checkpoints(process, out)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    store.refresh()
    assert {store.state(t).reason for t in store.stored_trials()} == {"stopped on request"}
    finish(start(undisturbed[0], out))
    require_same(store, undisturbed)
