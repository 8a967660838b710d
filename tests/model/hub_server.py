"""A model hub on this machine: enough of its HTTP API for downloads, with faults on request."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves one repository.

    Attributes:
        files: Content by name.
        refuse: Status and X-Error-Code with which everything is refused; None for none.
        cut_after: Bytes after which the next download is cut off; None for none.
        requests: Method, path and Range of what was asked.
    """

    def __init__(self, repo_id: str, files: dict[str, bytes]) -> None:
        self.repo_id = repo_id
        self.files = files
        self.refuse: tuple[int, str] | None = None
        self.cut_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_of
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.refuse is not None:
            status, code = hub.refuse
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
        elif path.startswith(f"/api/models/{hub.repo_id}/tree/"):
            entries = [self._entry(name) for name in hub.files]
            self._send_json([entry | {"type": "file"} for entry in entries])
        elif path.startswith(f"/api/models/{hub.repo_id}"):
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": _digest(data)}
                for name, data in hub.files.items()
            ]
            self._send_json({"id": hub.repo_id, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/{hub.repo_id}/resolve/"):
            self._send_file(path.split("/", 5)[5])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.server_of.files[name]
        return {"path": name, "size": len(data), "oid": _digest(data)}

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str) -> None:
        hub = self.server_of
        data = hub.files.get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
        }  # fmt: skip
        asked = self.headers.get("Range", "")
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        cut = hub.cut_after if self.command == "GET" and len(data) > (hub.cut_after or 0) else None
        if cut is not None:
            hub.cut_after = None
        self._send(206 if begin else 200, data[begin:], headers, cut)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
