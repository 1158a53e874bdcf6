"""A stand-in for the hub's HTTP API: what creating, gating and committing ask of it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".gguf", ".safetensors")


@dataclass
class Hub:
    """What the server was told."""

    gated: str | bool = False
    """Of every model that is asked for."""
    fail_commit: bool = False
    """Answer 500 to the next commit."""
    url: str = ""
    settings: list[dict[str, Any]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by hash."""
    uploads: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    """What the last commit holds."""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub of one's own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/").partition("?")[0]
            self._answer({"id": name, "modelId": name, "gated": hub.gated, "siblings": []})

        def do_PUT(self) -> None:
            if self.path.startswith("/storage/"):
                hub.objects[self.path.rpartition("/")[2]] = self._body()
                hub.uploads += 1
                self._answer({})
            else:
                hub.settings.append(json.loads(self._body()))
                self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                self._answer({"url": f"{hub.url}/me/tiny", "id": "me/tiny"})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                self._answer({"files": [_mode(file) for file in json.loads(body)["files"]]})
            elif self.path.endswith("/objects/batch"):
                asked = json.loads(body)["objects"]
                self._answer({"transfer": "basic", "objects": [self._batch(o) for o in asked]})
            elif "/commit/" in self.path and hub.fail_commit:
                hub.fail_commit = False
                self._answer({"error": "out of order"}, 500)
            elif "/commit/" in self.path:
                self._commit(body)
            else:
                self._answer({})

        def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
            oid = asked["oid"]
            if oid in hub.objects:
                return asked
            return {**asked, "actions": {"upload": {"href": f"{hub.url}/storage/{oid}"}}}

        def _commit(self, body: bytes) -> None:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            url = f"{hub.url}/me/tiny/commit/{'0' * 40}"
            self._answer({"success": True, "commitUrl": url, "commitOid": "0" * 40})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    kind = "lfs" if file["path"].endswith(LARGE) else "regular"
    return {"path": file["path"], "uploadMode": kind, "shouldIgnore": False, "oid": None}
