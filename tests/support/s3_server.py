"""A real S3 server on this machine, as unreliable or as slow as a test wants it."""

from __future__ import annotations

import logging
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Server:
    """moto behind WSGI; refuses every n-th request, all of them, or takes its time over writing."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.app = DomainDispatcherApplication(create_backend_app)
        self.refuse_every: int | None = None
        self.down = False
        self.write_delay_s = 0.0
        self.count = self.refused = 0
        self.http = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __call__(self, environ: dict, start_response: Any) -> Any:
        self.count += 1
        if self.down or (self.refuse_every and self.count % self.refuse_every == 0):
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):
            time.sleep(self.write_delay_s)
        return self.app(environ, start_response)


@contextmanager
def serving(bucket: str) -> Iterator[tuple[Any, Server, dict[str, str]]]:
    """(client, server, what clients need in their environment), with an empty bucket."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    environment = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # the client's own pauses are longer than a test
    }
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    try:
        yield client, server, environment
    finally:
        server.down, server.refuse_every = False, None
        reset = urllib.request.Request(f"{server.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # moto's buckets outlive its server
        client.close()
        server.http.shutdown()
        thread.join()
        server.http.server_close()
