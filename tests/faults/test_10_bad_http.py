"""Fault 10: what is no HTTP, or only slowly becomes it, gets one 4xx or a close in time."""

from __future__ import annotations

import gzip
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from faults.wire import Baseline, connect, figures, patience, post, read_all, statuses

if TYPE_CHECKING:
    from e2e.serving import Server

DEADLINE_S = 4.0  # the shared server's: 2 s for headers, 4 s for a whole body
BODY = b'{"prompt":[5],"max_tokens":1}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GZIP_BOMB = gzip.compress(b" " * (32 << 20))


def request(line: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([line, *headers, b"", b""])


def chunked(*chunks: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


MALFORMED: dict[str, bytes] = {
    "noise": bytes(range(256)) * 4,
    "NUL bytes": b"\0" * 1000 + b"\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + b"\x11" * 200,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "unknown version": request(b"GET / HTTP/9.9", b"Host: x"),
    "bad method": request(b"G@T / HTTP/1.1", b"Host: x"),
    "no target": request(b"GET  HTTP/1.1", b"Host: x"),
    "long target": request(b"GET /" + b"a" * 100_000 + b" HTTP/1.1", b"Host: x"),
    "long header": request(b"GET / HTTP/1.1", b"Host: x", b"A: " + b"a" * 100_000),
    "many headers": request(b"GET / HTTP/1.1", *[b"A%d: x" % i for i in range(10_000)]),
    "header without colon": request(b"GET / HTTP/1.1", b"Host: x", b"nonsense"),
    "space before colon": request(b"GET / HTTP/1.1", b"Host: x", b"A : b"),
    "folded header": request(b"GET / HTTP/1.1", b"Host: x", b"A: b", b" c"),
    "NUL in header": request(b"GET / HTTP/1.1", b"Host: x", b"A: b\0c"),
    "bare line feeds": b"GET /health HTTP/1.1\nHost: x\n\n",
    "two lengths": HEAD + b"Content-Length: 29\r\nContent-Length: 30\r\n\r\n" + BODY,
    "length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "length in hex": HEAD + b"Content-Length: 0x1d\r\n\r\n" + BODY,
    "length with sign": HEAD + b"Content-Length: +29\r\n\r\n" + BODY,
    "unknown coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": chunked(b"zz\r\n", BODY),
    "huge chunk size": chunked(b"f" * 40 + b"\r\n", BODY),
    "chunk without end": chunked(b"1d\r\n", BODY, b"xx0\r\n\r\n"),
    "gzip bomb": post("/v1/completions", GZIP_BOMB, "Content-Encoding: gzip"),
    "length of a terabyte": HEAD + b"Content-Length: 1000000000000\r\n\r\n" + BODY,
    "length too large for anything": HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n" + BODY,
    "text": post("/v1/completions", BODY).replace(b"application/json", b"text/plain"),
    "expectation": HEAD + b"Expect: 200-ok\r\nContent-Length: 29\r\n\r\n" + BODY,
    "host twice": request(b"GET / HTTP/1.1", b"Host: x", b"Host: y"),
}
# HTTP allows some of these where there is one way to read them.
MAY_BE_FINE = {"bare line feeds", "HTTP/0.9", "folded header"}


def wait_closed(connection: socket.socket, began: float, limit_s: float) -> bytes:
    received = read_all(connection)
    assert time.monotonic() - began < limit_s * patience() + 1
    return received


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(server: Server, name: str) -> None:
    with connect(server) as connection:
        began = time.monotonic()
        try:
            connection.sendall(MALFORMED[name])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all of it was sent
        received = wait_closed(connection, began, 2 * DEADLINE_S)
    found = statuses(received)
    if name in MAY_BE_FINE and found == [200]:
        return
    assert len(found) <= 1, received[:500]
    assert all(400 <= status < 500 for status in found), received[:500]
    if found and found != [408]:
        assert b'"error":{"message":' in received, received[:500]
        assert b"gunicorn" not in received.partition(b"\r\n\r\n")[2]


def test_host_is_required(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(request(b"GET /v1/models HTTP/1.1"))
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_all(connection)) == [400]


def test_headers_that_come_slowly(server: Server) -> None:
    with connect(server) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        received = wait_closed(connection, began, DEADLINE_S)
    figures(10, case="headers without end", closed_after_s=round(time.monotonic() - began, 1))
    assert statuses(received) in ([], [408])


def test_a_body_that_never_ends(server: Server) -> None:
    with connect(server) as connection:
        began = time.monotonic()
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
        received = wait_closed(connection, began, 2 * DEADLINE_S)
    figures(10, case="body without end", closed_after_s=round(time.monotonic() - began, 1))
    assert statuses(received) in ([400], [408])


def test_a_body_that_trickles(server: Server) -> None:
    """Never silent for long, so only the deadline of a whole body ends it."""
    with connect(server) as connection:
        began = time.monotonic()
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
        try:
            while time.monotonic() - began < 3 * DEADLINE_S:
                connection.sendall(b" ")
                time.sleep(0.2)
        except OSError:
            pass
        took = time.monotonic() - began
        assert took < 2 * DEADLINE_S * patience()
        figures(10, case="trickling body", closed_after_s=round(took, 1))


def test_one_byte_chunks_are_fine(server: Server) -> None:
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    with connect(server) as connection:
        for byte in chunked(body).replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"):
            connection.send(bytes([byte]))
        assert statuses(read_all(connection)) == [200]


def test_tls_to_the_plain_port(server: Server) -> None:
    context = ssl.create_default_context()
    with connect(server, 10) as connection, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(connection, server_hostname="localhost")


def test_a_length_that_promises_less_does_not_become_a_request(server: Server) -> None:
    """The rest of the body must not be taken for the next request's beginning."""
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n" + BODY)
        connection.shutdown(socket.SHUT_WR)
        assert all(400 <= status < 500 for status in statuses(read_all(connection)))


def test_nothing_is_left(server: Server, before: Baseline) -> None:
    before.wait()
    before.wait_descriptors()
