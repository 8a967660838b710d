"""The sockets that events are written to."""

from __future__ import annotations

import contextlib
import socket

import gevent
import pytest

from octavo.server.connection import Connection, Listener


def pair() -> tuple[Connection, socket.socket]:
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return Connection(ours.family, ours.type, ours.proto, fileno=ours.detach()), peer


def test_what_the_kernel_does_not_take_at_once_follows() -> None:
    connection, peer = pair()
    data = bytes(range(256)) * 4000
    received = bytearray()

    def read() -> None:
        while len(received) < len(data):
            gevent.sleep(0.001)
            with contextlib.suppress(BlockingIOError):
                received.extend(peer.recv(1 << 16, socket.MSG_DONTWAIT))

    with connection, peer:
        reader = gevent.spawn(read)
        connection.sendall(data)
        reader.get(timeout=30)
        connection.sendall(b"")
        connection.sendall(memoryview(b"end"))
        assert peer.recv(10) == b"end"
    assert bytes(received) == data


def test_a_peer_that_does_not_read_is_given_up() -> None:
    connection, peer = pair()
    connection.settimeout(0.05)
    with connection, peer, pytest.raises(TimeoutError):
        connection.sendall(bytes(1 << 22))


def test_a_peer_that_has_gone_is_an_error() -> None:
    connection, peer = pair()
    peer.close()
    with connection, pytest.raises(BrokenPipeError):
        connection.sendall(b"x")


def test_a_listener_makes_such_connections() -> None:
    kinds = []

    def handle(connection: Connection, _: object) -> None:
        kinds.append(type(connection))
        connection.sendall(b"hello")

    server = Listener(("127.0.0.1", 0), handle)
    server.start()
    with gevent.socket.create_connection(server.address) as client:
        assert client.recv(10) == b"hello"
    server.stop(timeout=1)
    assert kinds == [Connection]
