"""A stand-in for the Hugging Face hub on this machine: repositories are folders, read only.

    <root>/datasets/<owner>/<name>/...      a data set
    <root>/models/<owner>/<name>/...        a model

Answers what huggingface_hub asks to list a repository, to read parts of a file and to download one.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?(.*))?$")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if found := _API.match(path):
            kind, name, what, _, below = found.groups()
            return self._api(self.root / kind / name, name, what, below or "")
        if found := _FILE.match(path):
            kind, name, _, file = found.groups()
            return self._file(self.root / ("datasets" if kind else "models") / name / file)
        return self._answer(404, b"{}")

    def _api(self, folder: Path, name: str, what: str | None, below: str) -> None:
        if not folder.is_dir():
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if what != "tree":
            about = {"id": name, "sha": COMMIT, "private": False, "siblings": []}
            return self._answer(200, json.dumps(about).encode())
        if not (folder / below).is_dir():
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        entries = [
            {
                "type": "directory" if p.is_dir() else "file",
                "oid": _oid(p),
                "size": 0 if p.is_dir() else p.stat().st_size,
                "path": p.relative_to(folder).as_posix(),
            }
            for p in sorted((folder / below).rglob("*"))
        ]
        return self._answer(200, json.dumps(entries).encode())

    def _file(self, path: Path) -> None:
        if not path.is_file():
            code = "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
            return self._answer(404, b"", {"X-Error-Code": code})
        data, headers = path.read_bytes(), {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT}
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self._answer(200, data, headers)
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[first : last + 1], headers)

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _oid(path: Path) -> str:
    return hashlib.sha1(path.name.encode() if path.is_dir() else path.read_bytes()).hexdigest()


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve the repositories below `root`; the address for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
