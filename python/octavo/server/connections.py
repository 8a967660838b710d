"""The connections of a worker: where places run out, those that idle longest make room."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING

import gevent
import msgspec

from octavo.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CONNECTIONS = 65536  # far above what is admitted
RESERVE = 64  # beyond the limit: for probes while all are busy, and for those that are closing
_OWN_DESCRIPTORS = 64  # files, sockets and pipes of the worker itself

_REASONS = {
    400: "Bad Request",
    414: "URI Too Long",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class BadHttpError(RequestError):
    """What came is no HTTP request: 400, or what says it better."""

    def __init__(self, status: int) -> None:
        super().__init__("The request is not valid HTTP.")
        self.status = status if status in _REASONS else 400
        self.code = self.status


class TooManyConnectionsError(RequestError):
    """Every connection that the process may have is busy: 503."""

    status = 503
    type = "service_unavailable_error"
    code = "too_many_connections"
    retry_after_s = 1


class Connections:
    """Counts connections; each is served by a greenlet of its own.

    Args:
        limit: Connections of which requests are answered; beyond it only probes are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._idle: dict[gevent.Greenlet, None] = {}  # in the order in which they fell idle
        self._num_busy = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for the current greenlet's connection, idle at first.

        Where there is none, the connection that idles longest is closed.
        """
        greenlet = gevent.getcurrent()
        if self._idle and len(self._idle) + self._num_busy >= self.limit:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.kill(block=False)
        self._idle[greenlet] = None
        try:
            yield
        finally:
            self._idle.pop(greenlet, None)

    @contextlib.contextmanager
    def busy(self) -> Iterator[bool]:
        """While the current greenlet answers a request; False where only probes are answered."""
        greenlet = gevent.getcurrent()
        self._idle.pop(greenlet, None)
        self._num_busy += 1
        try:
            yield self._num_busy <= self.limit
        finally:
            self._num_busy -= 1
            self._idle[greenlet] = None


def connection_limit() -> int:
    """Connections that the limit of open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, soft - RESERVE - _OWN_DESCRIPTORS))


def answer_bytes(error: RequestError, body: object, *, closes: bool = False) -> bytes:
    """An error's answer as it goes over the wire; `closes`: it is the connection's last."""
    data = msgspec.json.encode(body)
    lines = [
        f"HTTP/1.1 {error.status} {_REASONS[error.status]}",
        f"Connection: {'close' if closes else 'keep-alive'}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    ]
    if error.retry_after_s is not None:
        lines.append(f"Retry-After: {error.retry_after_s}")
    return "\r\n".join([*lines, "", ""]).encode() + data
