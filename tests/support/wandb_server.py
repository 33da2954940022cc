"""A stand-in for the W&B server, as far as wandb 0.31 talks to it in our tests.

There is no W&B server on a test machine and none may be reached from it. The client is the real one:
this answers the requests that it really sends (GraphQL, the file stream of history and summary) over
a loopback socket, keeps what it was sent, and gives it back to the public API. It knows nothing of
artifacts, files, users or rights, and orders nothing: it shows that we use the client correctly,
not that W&B does with the data what its documentation says.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT = "ent", "p"
KEY = "5ec4e7" + "0f" * 17  # 40 characters, as W&B's keys have


class Server:
    """What has been sent: by run, "config", "summary", "history" by step, "group", "state"."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.url = ""

    def history(self, run: str) -> list[int]:
        """Steps that have arrived."""
        return sorted(self.runs.get(run, {}).get("history", {}))

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        query, given = body["query"], body.get("variables") or {}
        name = query.split("(")[0].split("{")[0].split()[-1]
        self.operations.append(name)
        known = {
            "Viewer": self._viewer,
            "GetDefaultEntity": self._viewer,
            "RunResumeStatus": self._resume,
            "UpsertBucket": self._upsert,
            "Runs": self._runs,
            "CreateRunFiles": lambda _: {
                "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}
            },
        }
        if name in known:
            return {"data": known[name](given)}
        if name == "ArtifactType":
            return {"data": {"project": None}}
        return {"data": None, "errors": [{"message": f"the stand-in knows no {name}"}]}

    def stream(self, run: str, body: dict[str, Any]) -> dict[str, Any]:
        kept = self._run(run)
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                rows = [json.loads(line) for line in part["content"]]
                kept["history"] |= {row["_step"]: row for row in rows}
            elif name == "wandb-summary.json":
                kept["summary"] = json.loads(part["content"][-1])
        if body.get("complete"):
            kept["state"] = "finished" if body.get("exitcode") == 0 else "failed"
        return {}

    def _run(self, name: str) -> dict[str, Any]:
        new = {"config": {}, "summary": {}, "history": {}, "state": "running", "jobType": "trial"}
        return self.runs.setdefault(name, new)

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": []}
        who = {"id": "u", "entity": ENTITY, "username": "me", "flags": "{}", "teams": teams}
        return {"viewer": who}

    def _resume(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        bucket = None
        if run is not None:
            last = self.history(given["name"])[-1:]
            tail = [json.dumps(run["history"][s]) for s in last]
            bucket = {
                "id": "1", "name": given["name"], "displayName": given["name"],
                "summaryMetrics": json.dumps(run["summary"]), "config": json.dumps(run["config"]),
                "historyLineCount": len(run["history"]), "historyTail": json.dumps(tail),
                "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "tags": [],
                "notes": None, "wandbConfig": '{"t": 1}',
            }  # fmt: skip
        return {"model": {"id": "1", "name": PROJECT, "entity": _entity(), "bucket": bucket}}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        new = given["name"] not in self.runs
        run = self._run(given["name"])
        run["state"] = "running"
        for ours, theirs in (("group", "groupName"), ("jobType", "jobType"), ("tags", "tags")):
            if given.get(theirs) is not None:
                run[ours] = given[theirs]
        if given.get("config"):
            run["config"] |= json.loads(given["config"])
        project = {"id": "1", "name": PROJECT, "entity": _entity()}
        bucket = {
            "id": "1", "name": given["name"], "displayName": given["name"], "description": None,
            "config": json.dumps(run["config"]), "sweepName": None, "project": project,
            "historyLineCount": len(run["history"]),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _runs(self, given: dict[str, Any]) -> dict[str, Any]:
        if (given["entity"], given["project"]) != (ENTITY, PROJECT):
            return {"project": None}
        group = json.loads(given["filters"]).get("group")
        names = [n for n, r in self.runs.items() if group in (None, r.get("group"))]
        at = int(given.get("cursor") or 0)
        page = names[at : at + 2]  # a small page: the client has to ask for the next
        edges = [
            {"node": self._node(name), "cursor": str(at + i + 1)} for i, name in enumerate(page)
        ]
        more = at + 2 < len(names)
        info = {"endCursor": str(at + 2), "hasNextPage": more}
        found = {"edges": edges, "pageInfo": info}
        return {
            "project": {"internalId": "1", "runCount": len(names), "readOnly": False, "runs": found}
        }

    def _node(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        return {
            "projectId": 1, "id": "1", "name": name, "displayName": name, "tags": run.get("tags"),
            "sweepName": None, "state": run["state"], "config": json.dumps(run["config"]),
            "group": run.get("group"), "jobType": run["jobType"], "commit": None,
            "readOnly": False, "createdAt": "2026-11-24T00:00:00", "heartbeatAt": None,
            "description": None, "notes": None, "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run["summary"]), "historyKeys": None,
            "historyLineCount": len(run["history"]), "user": {"name": "me", "username": "me"},
        }  # fmt: skip


def _entity() -> dict[str, str]:
    return {"id": "1", "name": ENTITY}


@contextmanager
def answering() -> Iterator[Server]:
    """The stand-in on a loopback port."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            body = json.loads(data or b"{}")
            if self.path == "/graphql":
                answer = server.graphql(body)
            else:
                answer = server.stream(self.path.split("/")[4], body)
            said = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield server
        http.shutdown()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a socket that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    """The address of a port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # held, so that nobody else takes it; never listening
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
