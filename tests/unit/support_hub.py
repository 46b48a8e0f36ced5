"""A small hub on 127.0.0.1: as much of the Hugging Face hub's HTTP as a download needs, and its accidents."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LARGE = (".nemo", ".safetensors")
"""What the hub keeps in its large file storage, which another host serves."""


@dataclass
class Hub:
    """Its content, its accidents, and what it was asked.

    Attributes:
        repositories: Files by repository, commit and path; the last commit is `main`.
        gated: Repositories that want a token.
        damaged: Paths of which the next answer has a wrong byte.
        stalls: By path, after how many bytes the next answer stops without ending.
        requests: (method, path, range, host, authorization) of each request.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]]
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    stalls: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str, str | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    def fetched(self, name: str) -> list[str | None]:
        """The Range headers with which a file was fetched."""
        return [asked for method, path, asked, *_ in self.requests if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        headers = self.headers
        self.hub.requests.append(
            (self.command, path, headers.get("Range"), headers["Host"], headers.get("Authorization"))
        )
        pieces = path.strip("/").split("/")
        api = pieces[:2] == ["api", "models"]
        if pieces[0] == "storage":
            self._send(pieces[1].split("-", 1)[1], self._stored(pieces[1].split("-", 1)[0]))
            return
        name = "/".join(pieces[2:4] if api else pieces[:2])
        rest = pieces[4:] if api else pieces[2:]
        commits = self.hub.repositories.get(name)
        if commits is None:
            return self._refuse(401, "RepoNotFound")
        commit = list(commits)[-1] if len(rest) < 2 or rest[1] == "main" else rest[1]
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        files = commits[commit]
        if api and rest[:1] in ([], ["revision"]):
            return self._json({"id": name, "sha": commit, "gated": "manual" if name in self.hub.gated else False})
        if api:
            return self._json([_entry(path, data) for path, data in files.items()])
        if name in self.hub.gated and headers.get("Authorization") is None:
            return self._refuse(403, "GatedRepo")
        path = "/".join(rest[2:])
        data = files[path]
        if path.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            self.send_response(302)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-ETag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(data)))
            # Another name of the same machine is another host, as the real hub's storage is.
            port = self.server.server_address[1]
            self.send_header("Location", f"http://localhost:{port}/storage/{digest}-{path.rsplit('/', 1)[-1]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(path, data, commit)

    def _stored(self, digest: str) -> bytes:
        files = (f for commits in self.hub.repositories.values() for fs in commits.values() for f in fs.values())
        return next(data for data in files if hashlib.sha256(data).hexdigest() == digest)

    def _send(self, name: str, data: bytes, commit: str | None = None) -> None:
        size = len(data)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if (asked := self.headers.get("Range")) else 0
        if self.command == "GET" and name in self.hub.damaged:
            self.hub.damaged.remove(name)
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_blob_id(data)}"')
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = self.hub.stalls.pop(name, None)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[start:stop])
            if stop is not None:
                self.hub.stalled.set()
                self.hub.go_on.wait(60)
                self.close_connection = True


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "oid": _blob_id(data), "size": len(data)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serves a hub until the end of the block."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *request: None  # clients that hang up are part of the tests
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
