"""Requests that are not what HTTP asks for, on the real server: one fitting status each."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from e2e.serving import FAKE, Server, launcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = b'{"prompt":[5],"max_tokens":1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ANSWER = re.compile(rb"HTTP/1\.\d (\d+) .*?\r\n\r\n.*[}>]", re.DOTALL)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    with launcher(tmp_path_factory.mktemp("http"), tiny_model) as launch:
        yield launch("--client-timeout", "1", command=FAKE).wait_ready()


def ask(server: Server, data: bytes, *, ends: bool = True) -> tuple[int, bytes]:
    """Send bytes, and end or leave the sending side open: first status, and all that came."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while (
            found := re.match(rb"HTTP/1\.\d (\d+) .*?\r\n\r\n.*[}>]", received, re.DOTALL)
        ) is None:
            piece = connection.recv(65536)
            assert piece, received
            received += piece
    return int(found[1]), received


def length(count: int) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % count


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400, b""),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, b""),
        (b"GET /health HTTP/1.0\r\n\r\n", 200, b"healthy"),
        (length(len(BODY)) + BODY, 200, b"choices"),
        (length(100) + BODY, 400, b"did not arrive whole"),
        (length(100), 400, b"did not arrive whole"),
        (CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 200, b"choices"),
        (CHUNKED + b"zz\r\n" + BODY, 400, b"did not arrive whole"),
        (CHUNKED + b"%x\r\n%s" % (len(BODY) + 9, BODY), 400, b"did not arrive whole"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, b""),
        (length(29) + b"Content-Length: 30\r\n\r\n" + BODY, 400, b""),
        (POST + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, b""),
        (length(10**12), 413, b"body_too_large"),
        (POST + b"Expect: coffee\r\nContent-Length: 0\r\n\r\n", 417, b""),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 90_000 + b"\r\n\r\n", 431, b""),
    ],
    ids=[
        "no host", "two hosts", "no host in 1.0", "whole body", "cut body", "no body",
        "whole chunk", "bad chunk", "cut chunk", "negative length", "two lengths",
        "length and chunks", "too large", "unknown expectation", "long path", "long header",
    ],
)  # fmt: skip
def test_the_status_fits(server: Server, data: bytes, status: int, words: bytes) -> None:
    found, received = ask(server, data)
    assert found == status, received
    assert words in received


def test_a_body_that_stops_half_way_gets_408(server: Server) -> None:
    status, received = ask(server, length(100) + BODY, ends=False)
    assert status == 408
    assert b"body_too_slow" in received


def test_a_body_that_is_too_large_is_not_read(server: Server) -> None:
    """It is thrown away for as long as it comes at once; then the connection ends."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(length(10**12) + b" " * (3 << 20))
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 413")
    assert b"\r\nConnection: close\r\n" in received
    assert received.count(b"HTTP/1.1") == 1


def test_it_still_serves(server: Server) -> None:
    assert server.complete().status == 200
    assert "Traceback" not in server.log()
    assert "failed" not in server.log()
