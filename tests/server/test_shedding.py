"""Refusals under overload: cheap, and only where no doubt is left about what is refused."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import gevent
import pytest

from octavo.server.connection import Connection
from octavo.server.shedding import Shedder

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt":[5],"max_tokens":1}'
PLAIN = HEAD + b"Content-Length: 29\r\n\r\n" + BODY


class Queue:
    """Whether too many wait."""

    is_full = True

    def __call__(self) -> bool:
        return self.is_full


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, peer = socket.socketpair()
    peer.settimeout(20)
    connection = Connection(ours.family, ours.type, ours.proto, fileno=ours.detach())
    with connection, peer:
        yield connection, peer


def refuse_some(queue: Queue, connection: Connection, idle_timeout: float = 0.05) -> bool:
    return Shedder(queue).refuse_some(connection, idle_timeout, 1.0)


def with_line(path: bytes) -> bytes:
    return PLAIN.replace(b"/v1/completions", path)


@pytest.mark.parametrize(
    "path",
    [b"/v1/completions", b"/v1/chat/completions", b"/v1/responses", b"/v1/messages",
     b"/v1/embeddings"],
)  # fmt: skip
def test_a_plain_request_is_refused(
    queue: Queue, pair: tuple[Connection, socket.socket], path: bytes
) -> None:
    connection, peer = pair
    for headers in (b"", b"Connection: keep-alive\r\n", b"connection:Keep-Alive\r\nX: y\r\n"):
        peer.sendall(with_line(path).replace(b"\r\nHost", b"\r\n" + headers + b"Host"))
        assert not refuse_some(queue, connection)  # nothing more came in time
        head, _, body = peer.recv(10_000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\nConnection: keep-alive\r\n")
        assert b"\r\nRetry-After: 1" in head
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head
        error = json.loads(body)
        assert error["error"]["message"] == "Too many requests are waiting. Try again later."
        assert ("type" in error) == (path == b"/v1/messages")


def test_several_are_refused_until_there_is_room(
    queue: Queue, pair: tuple[Connection, socket.socket]
) -> None:
    connection, peer = pair
    found: list[bytes] = []

    def ask() -> None:
        for index in range(5):
            queue.is_full = index < 4
            peer.sendall(PLAIN)
            if queue.is_full:
                found.append(gevent.get_hub().threadpool.apply(peer.recv, (10_000,)))

    asker = gevent.spawn(ask)
    assert refuse_some(queue, connection, 10)
    asker.get(timeout=20)
    assert [answer[:12] for answer in found] == [b"HTTP/1.1 429"] * 4
    assert connection.recv(20) == PLAIN[:20], "what is to be served was put back"
    assert connection.recv(10_000) == PLAIN[20:]


UNCLEAR = {
    "nothing that is refused": with_line(b"/tokenize"),
    "another method": PLAIN.replace(b"POST", b"GET"),
    "HTTP/1.0": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a query": with_line(b"/v1/completions?a=b"),
    "two requests": PLAIN + PLAIN,
    "half a body": PLAIN[:-5],
    "half a head": HEAD,
    "half a line": HEAD[:20],
    "no host": PLAIN.replace(b"Host: x\r\n", b""),
    "two hosts": PLAIN.replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"),
    "no length": HEAD + b"\r\n" + BODY,
    "two lengths": HEAD + b"Content-Length: 29\r\nContent-Length: 29\r\n\r\n" + BODY,
    "two lengths in one": HEAD + b"Content-Length: 29, 29\r\n\r\n" + BODY,
    "a length with a sign": HEAD + b"Content-Length: +29\r\n\r\n" + BODY,
    "a length behind a space": HEAD + b"Content-Length : 29\r\n\r\n" + BODY,
    "a folded length": HEAD + b"Content-Length:\r\n 29\r\n\r\n" + BODY,
    "chunks": HEAD + b"Content-Length: 29\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "an expectation": HEAD + b"Expect: 100-continue\r\nContent-Length: 29\r\n\r\n" + BODY,
    "an upgrade": HEAD + b"Upgrade: h2c\r\nContent-Length: 29\r\n\r\n" + BODY,
    "a last request": HEAD + b"Connection: close\r\nContent-Length: 29\r\n\r\n" + BODY,
    "a stray line feed": HEAD + b"A: b\nContent-Length: 29\r\n\r\n" + BODY,
    "a stray carriage return": HEAD + b"A: b\rc\r\nContent-Length: 29\r\n\r\n" + BODY,
    "a NUL": HEAD + b"A: b\0\r\nContent-Length: 29\r\n\r\n" + BODY,
    "a page's request": HEAD + b"Origin: https://x\r\nContent-Length: 29\r\n\r\n" + BODY,
    "bytes that are no HTTP": bytes(range(256)),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_plain_goes_the_usual_way(
    queue: Queue, pair: tuple[Connection, socket.socket], name: str
) -> None:
    connection, peer = pair
    peer.sendall(UNCLEAR[name])
    assert refuse_some(queue, connection)
    assert connection.recv(10_000) == UNCLEAR[name]
    peer.settimeout(0)
    with pytest.raises(BlockingIOError):
        peer.recv(1)


def test_with_room_nothing_is_read(queue: Queue, pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    queue.is_full = False
    peer.sendall(PLAIN)
    assert refuse_some(queue, connection)
    assert connection.recv(10_000) == PLAIN
    assert Shedder(queue).refusal("POST", "/v1/completions", []) is None


def test_of_what_is_parsed_already(queue: Queue) -> None:
    shedder = Shedder(queue)
    assert shedder.refusal("POST", "/v1/completions", [("HOST", "x")])
    assert shedder.refusal("POST", "/v1/messages", [])
    assert shedder.refusal("GET", "/v1/completions", []) is None
    assert shedder.refusal("POST", "/v1/messages/count_tokens", []) is None
    assert shedder.refusal("POST", "/v1/completions", [("ORIGIN", "https://x")]) is None


def test_a_closed_connection_is_over(queue: Queue, pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    peer.close()
    assert not refuse_some(queue, connection)


def test_a_client_that_does_not_read_is_given_up(
    queue: Queue, pair: tuple[Connection, socket.socket]
) -> None:
    connection, peer = pair
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def ask() -> None:
        for _ in range(1000):
            peer.sendall(PLAIN)
            gevent.sleep(0.0005)

    asker = gevent.spawn(ask)
    with pytest.raises(TimeoutError):
        Shedder(queue).refuse_some(connection, 1.0, 0.05)
    asker.kill()
