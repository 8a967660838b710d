"""A load generator for streamed completions: one thread, one epoll, little work per event.

It must not be what is measured, so it speaks HTTP/1.1 on raw sockets: an answer is taken apart as
it arrives, each event is decoded once into a small struct, and its time is appended to an array.
Times are seconds of the system's monotonic clock, taken right before a request is handed to the
kernel and right after bytes came from it. Events that arrive in one read share their time.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from octavo.bench.stream import BrokenAnswerError, CompletionStream
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from octavo.bench.workloads import Item

RECEIVE_BYTES = 1 << 18


class Record(msgspec.Struct, array_like=True):
    """What happened to one request; times in seconds, 0 where nothing came.

    Attributes:
        sent_s: Right before its first byte was handed to the kernel.
        due_s: When it should have been sent, for open-loop load.
        event_s: Arrival of each event that carried a choice.
        num_prompt_tokens: As the server counts them.
        num_output_tokens: As the server counts them; the number of events if it does not.
        expected_tokens: Output tokens asked for.
        error: Empty when the answer came whole.
    """

    sent_s: float = 0.0
    due_s: float = 0.0
    event_s: list[float] = []
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    expected_tokens: int = 0
    error: str = ""


@dataclass(frozen=True)
class Target:
    """Where the requests go.

    Attributes:
        url: Base URL, with or without the trailing /v1.
        model: Sent as `model`.
        api_key: Sent as a bearer token unless empty.
        extra_body: Fields added to every request.
    """

    url: str
    model: str
    api_key: str = ""
    extra_body: dict[str, object] = field(default_factory=dict)

    def request(self, item: Item) -> bytes:
        """The bytes of a streamed, greedy completion request of exactly item.max_tokens."""
        body = msgspec.json.encode(
            {
                "model": self.model,
                "prompt": item.prompt.tolist(),
                "max_tokens": item.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.extra_body,
            }
        )
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/completions"
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body


class _Connection:
    """One keep-alive connection and the request on it."""

    __slots__ = ("answered", "item", "out", "record", "sock", "stream")

    def __init__(self, sock: socket.socket, item: Item, record: Record) -> None:
        self.sock = sock
        self.out = memoryview(b"")
        self.answered = False  # it has carried a whole answer
        self.begin(item, record)

    def begin(self, item: Item, record: Record) -> None:
        self.item = item
        self.record = record
        self.stream = CompletionStream()


class LoadGenerator:
    """Sends the items and records each answer.

    Requires: one use of run() at a time; the process may open `concurrency` sockets.
    """

    def __init__(self, target: Target, *, timeout_s: float = 600.0) -> None:
        self._target = target
        self._timeout_s = timeout_s
        parts = urlsplit(target.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{target.url}: expected a URL like http://localhost:8000")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = (parts.hostname, parts.port or (443 if self._tls else 80))
        self._resolved: tuple[socket.AddressFamily, tuple[str | int, ...]] | None = None
        self._poll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._records: list[Record] = []

    def run(
        self, items: Iterable[Item], *, concurrency: int | None, start_s: float = 0.0
    ) -> list[Record]:
        """Send every item and wait for every answer.

        Args:
            items: The workload, in order of arrival.
            concurrency: At most so many requests at a time, each sent as soon as one ends;
                None sends each at start + item.arrival_s, whatever is still under way.
            start_s: Monotonic time of the start; 0 is now.

        Returns:
            One record an item, in the order in which they ended.
        """
        self._records = []
        waiting = deque(items)
        start_s = start_s or time.monotonic()
        time.sleep(max(0.0, start_s - time.monotonic()))
        while waiting or self._busy:
            delay = self._send_due(waiting, concurrency, start_s)
            self._wait(delay)
        return self._records

    def close(self) -> None:
        """Close every connection."""
        for connection in [*self._idle, *self._busy.values()]:
            connection.sock.close()
        self._idle.clear()
        self._busy.clear()
        self._poll.close()

    def _send_due(self, waiting: deque[Item], concurrency: int | None, start_s: float) -> float:
        """Send what is due; returns the seconds until something is due again."""
        while waiting:
            due_s = 0.0
            if concurrency is None:
                due_s = start_s + waiting[0].arrival_s
                delay = due_s - time.monotonic()
                if delay > 0:
                    return min(delay, 1.0)
            elif len(self._busy) >= concurrency:
                break
            self._send(waiting.popleft(), due_s)
        return 1.0

    def _send(self, item: Item, due_s: float) -> None:
        record = Record(due_s=due_s, expected_tokens=item.max_tokens)
        if self._idle:
            connection = self._idle.pop()
            connection.begin(item, record)
        else:
            try:
                connection = _Connection(self._connect(), item, record)
            except OSError as error:
                record.error = f"connect: {error.strerror or error}"
                self._records.append(record)
                return
        connection.out = memoryview(self._target.request(item))
        self._busy[connection.sock.fileno()] = connection
        record.sent_s = time.monotonic()
        record.due_s = due_s or record.sent_s
        self._write(connection)

    def _connect(self) -> socket.socket:
        if self._resolved is None:
            sock = socket.create_connection(self._address, timeout=10)
            self._resolved = (sock.family, sock.getpeername())
        else:
            sock = socket.socket(self._resolved[0])
            sock.settimeout(10)
            sock.connect(self._resolved[1])
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
        sock.settimeout(0)
        self._poll.register(sock.fileno(), select.EPOLLIN)
        return sock

    def _write(self, connection: _Connection) -> None:
        try:
            while connection.out:
                connection.out = connection.out[connection.sock.send(connection.out) :]
            events = select.EPOLLIN
        except (BlockingIOError, ssl.SSLWantWriteError):
            events = select.EPOLLIN | select.EPOLLOUT
        except OSError as error:
            self._drop(connection, f"send: {error.strerror or error}")
            return
        self._poll.modify(connection.sock.fileno(), events)

    def _wait(self, delay_s: float) -> None:
        """Take in what has arrived, after at most `delay_s`."""
        ready = self._poll.poll(delay_s)
        for fd, events in ready:
            connection = self._busy.get(fd)
            if connection is None:
                self._forget_idle(fd)
                continue
            if events & select.EPOLLOUT:
                self._write(connection)
            if events & ~select.EPOLLOUT and fd in self._busy:
                self._read(connection)
        if not ready:
            self._drop_late()

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
            while self._tls is not None and connection.sock.pending():  # type: ignore[attr-defined]
                data += connection.sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._drop(connection, f"receive: {error.strerror or error}")
            return
        stream = connection.stream
        try:
            stream.feed(data, time.monotonic())
        except BrokenAnswerError as error:
            self._drop(connection, str(error))
            return
        if stream.done:
            self._finish(connection)

    def _finish(self, connection: _Connection) -> None:
        stream, record = connection.stream, connection.record
        record.event_s = stream.event_s.tolist()
        record.num_prompt_tokens = stream.num_prompt_tokens
        record.num_output_tokens = stream.num_output_tokens
        record.error = stream.error
        self._records.append(record)
        self._busy.pop(connection.sock.fileno())
        connection.answered = True
        if stream.reusable:
            self._idle.append(connection)
        else:
            connection.sock.close()

    def _drop(self, connection: _Connection, reason: str) -> None:
        self._busy.pop(connection.sock.fileno())
        connection.sock.close()
        if connection.answered and connection.stream.untouched:
            # The server closed a kept-alive connection just as it was used again.
            self._send(connection.item, connection.record.due_s)
            return
        connection.record.error = reason
        connection.record.event_s = connection.stream.event_s.tolist()
        self._records.append(connection.record)

    def _forget_idle(self, fd: int) -> None:
        """The server closed a connection that it kept alive."""
        for connection in [c for c in self._idle if c.sock.fileno() == fd]:
            self._idle.remove(connection)
            connection.sock.close()

    def _drop_late(self) -> None:
        now = time.monotonic()
        for connection in list(self._busy.values()):
            events = connection.stream.event_s
            last_s = events[-1] if events else connection.record.sent_s
            if now - last_s > self._timeout_s:
                self._drop(connection, f"no event for {self._timeout_s:.0f} s")
