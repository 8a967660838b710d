"""Events that are sent while the response's greenlet waits, over real sockets."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import gevent
import pytest

from octavo.engine.client import RequestOutput
from octavo.server import streaming
from octavo.server.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable


def pair(send_buffer: int) -> tuple[Connection, socket.socket]:
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    return Connection(ours.family, ours.type, ours.proto, fileno=ours.detach()), peer


def read_all(peer: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := peer.recv(1 << 16, socket.MSG_DONTWAIT):
            data += piece
    return data


def test_a_push_sends_what_is_held_first() -> None:
    connection, peer = pair(1 << 16)
    with connection, peer:
        connection.hold()
        connection.sendall(b"head ")
        assert connection.push(b"body")
        assert read_all(peer) == b"head body"


def test_what_a_push_cannot_send_is_kept_in_order() -> None:
    connection, peer = pair(4096)
    expected = b""
    with connection, peer:
        more = True
        while more:
            expected += b"%07d " % len(expected)
            more = connection.push(expected[-8:])
        assert not connection.push(b"and more ")
        flushing = gevent.spawn(connection.sendall, b"the end")
        received = b""
        while not flushing.ready():
            received += read_all(peer)
            gevent.sleep(0.001)
        received += read_all(peer)
    assert received == expected + b"and more the end"


def test_a_push_to_a_peer_that_has_gone_is_told_by_the_flush() -> None:
    connection, peer = pair(1 << 16)
    peer.close()
    with connection:
        assert not connection.push(b"x")
        with pytest.raises(BrokenPipeError):
            connection.flush()


class Words:
    """A generation and its answer in one: each token is a word; 13 brings misfortune."""

    keep_alive = b""

    def divert(self, taker: Callable[[RequestOutput], bool]) -> None:
        self.taker = taker

    def take(self, given: Any) -> Any:
        if not isinstance(given, RequestOutput):
            return b"".join(b"word%d " % each for each in given)
        if given.token_ids == [13]:
            raise ValueError("13")
        return given.token_ids or None


def writer(connection: Connection | None) -> tuple[Any, Words]:
    words: Any = Words()
    direct = streaming._DirectWriter(words, words, connection)
    direct.begin()
    return direct, words


def test_events_are_sent_in_chunks() -> None:
    connection, peer = pair(1 << 16)
    direct, words = writer(connection)
    with connection, peer:
        assert words.taker(RequestOutput(0, [1]))
        assert words.taker(RequestOutput(0, []))  # says nothing, so nothing is sent
        assert words.taker(RequestOutput(0, [2, 3]))
        assert read_all(peer) == b"6\r\nword1 \r\nc\r\nword2 word3 \r\n"
        assert not direct.settle()


def test_a_slow_client_is_left_to_the_greenlet() -> None:
    connection, peer = pair(4096)
    direct, words = writer(connection)
    with connection, peer:
        count = 1
        while words.taker(RequestOutput(0, [5])):
            count += 1
        reading = gevent.spawn(direct.settle)
        received = b""
        while not reading.ready():
            received += read_all(peer)
            gevent.sleep(0.001)
        assert reading.get() is True
        received += read_all(peer)
    assert received == b"6\r\nword5 \r\n" * count


def test_a_client_that_does_not_read_is_given_up() -> None:
    connection, peer = pair(4096)
    direct, words = writer(connection)
    connection.settimeout(0.05)
    with connection, peer:
        while words.taker(RequestOutput(0, [5])):
            pass
        with pytest.raises(TimeoutError):
            direct.settle()


def test_what_making_an_event_raises_is_raised_in_the_greenlet() -> None:
    connection, peer = pair(1 << 16)
    direct, words = writer(connection)
    with connection, peer:
        assert not words.taker(RequestOutput(0, [13]))
        with pytest.raises(ValueError, match="13"):
            direct.settle()
        assert read_all(peer) == b""


def test_without_a_plain_connection_nothing_is_diverted() -> None:
    _, words = writer(None)
    assert not hasattr(words, "taker")
