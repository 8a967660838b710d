"""A small HTTP server with answers made by the test, on a free loopback port."""

from __future__ import annotations

import json
import socketserver
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def token(text: str = "a", finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def usage(prompt: int, output: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": output}
    return event({"choices": [], "usage": counts})


def plain(status: str, body: str, headers: str = "") -> bytes:
    data = body.encode()
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


def completion(request: dict[str, Any]) -> Iterator[bytes]:
    """A sound answer: one event a token, the usage, [DONE]."""
    count = request["max_tokens"]
    yield HEAD
    for i in range(count):
        yield chunk(token(finish_reason="length" if i == count - 1 else None))
    yield chunk(usage(len(request["prompt"]), count)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class StreamServer(socketserver.ThreadingTCPServer):
    """Answers every POST with what `answer` yields; an answer that returns early hangs up.

    Attributes:
        requests: The bodies received, in order.
        heads: Request lines and headers, in order.
        peak: Most requests that were under way at a time.
        connections: Connections accepted.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Iterator[bytes]] = completion) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.peak = self.active = self.connections = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> StreamServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def enter(self, head: str, body: dict[str, Any]) -> None:
        with self.lock:
            self.heads.append(head)
            self.requests.append(body)
            self.active += 1
            self.peak = max(self.peak, self.active)

    def leave(self) -> None:
        with self.lock:
            self.active -= 1


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    server: StreamServer

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        while (head := self._head()) is not None:
            names = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
            length = int(names.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            self.server.enter(head, body)
            whole = False
            try:
                for part in self.server.answer({**body, "_path": head.split(" ")[1]}):
                    self.wfile.write(part)
                    whole = part.endswith(b"0\r\n\r\n") or part.startswith(b"HTTP/1.1 4")
            except OSError:
                return
            finally:
                self.server.leave()
            if not whole:
                return

    def _head(self) -> str | None:
        lines = []
        try:
            while (line := self.rfile.readline().decode("latin-1").strip()) or not lines:
                if not line:
                    return None
                lines.append(line)
        except OSError:
            return None
        return "\r\n".join(lines)
