"""Collecting from a real S3 server on this machine, one that answers 503 every third time."""

import json
import threading

import pytest

from analysis import records
from parcae_core.errors import UserError
from sweeps.collect import records_of
from sweeps.remote import fetched, is_url, put
from sweeps.store import Store
from tests.sweeps.test_store import good_result
from tests.sweeps.tiny import tiny_plan, write_spec


class Unreliable:
    """WSGI: every third request is refused."""

    def __init__(self, app):
        self.app, self.count = app, 0

    def __call__(self, environ, start_response):
        self.count += 1
        if self.count % 3 == 0:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)


@pytest.fixture
def s3(monkeypatch):
    """An endpoint with an empty bucket "sweeps"; the client in use knows it by the environment."""
    boto3 = pytest.importorskip("boto3")
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="sweeps")
    yield client, app
    client.close()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


def test_records_from_s3_are_those_of_the_local_folder(s3, tmp_path):
    client, app = s3
    plan = tiny_plan()
    store = Store(tmp_path, plan.name)
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    for trial in plan.trials[:3]:
        path = store.folder(trial.trial_id) / "result.json"
        path.write_text(json.dumps(good_result(trial)))
    for path in store.root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "sweeps", f"runs/tiny/{path.relative_to(store.root)}")
    before = app.count
    with fetched("s3://sweeps/runs/tiny") as copy:
        table = records_of(copy)
        assert table.equals(records_of(store))
        url = put(records.save(table, tmp_path / "records.parquet"), "s3://sweeps/runs/tiny")
    assert url == "s3://sweeps/runs/tiny/records.parquet"
    assert app.count - before > 6  # some of them were refused
    body = client.get_object(Bucket="sweeps", Key="runs/tiny/records.parquet")["Body"]
    (tmp_path / "back.parquet").write_bytes(body.read())
    assert records.load(tmp_path / "back.parquet").equals(table)


def test_a_place_without_a_sweep_is_refused(s3):
    with (
        pytest.raises(UserError, match=r"no sweep there|nothing is there"),
        fetched("s3://sweeps/x"),
    ):
        pass


def test_urls_are_told_from_paths():
    from pathlib import Path

    assert is_url("s3://b/x")
    assert is_url(Path("gs://b/x"))
    assert not is_url("runs/demo")
    assert not is_url("C:/x")
