"""Accepted connections whose small writes cost one system call, and which take bytes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gevent.server import StreamServer
from gevent.socket import socket as gevent_socket

if TYPE_CHECKING:
    import socket


class Connection(gevent_socket):  # type: ignore[misc]
    """A socket that hands data to the kernel first and waits only for what was not taken.

    gevent's sendall() asks for the buffer's size before each write, which doubles the system calls
    of a stream of events; and a response's head and its first bytes would be sent one by one.
    """

    _is_holding = False
    _held = b""
    _unread = b""

    def hold(self) -> None:
        """Keep what is sent next, a response's head, until more is sent or flush() is called."""
        self._is_holding = True

    def flush(self) -> None:
        """Send what is held."""
        self._is_holding = False
        if self._held and not self.closed:
            self.sendall(b"")

    def recv(self, size: int, flags: int = 0) -> bytes:
        """What was put back, then what comes."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        received: bytes = super().recv(size, flags)
        return received

    def unread(self, data: bytes) -> None:
        """Put back what was received last."""
        self._unread = data + self._unread

    def sendall(self, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        """Send everything, waiting while the peer does not read."""
        if self._is_holding:
            self._is_holding, self._held = False, bytes(data)
            return
        if self._held:
            data, self._held = self._held + data, b""
        view = memoryview(data)
        try:
            sent = self._sock.send(view, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(view):
            super().sendall(view[sent:], flags)

    def push(self, data: bytes) -> bool:
        """Send without waiting; False where flush() has to send a rest, or fails as the send did.

        Requires: whoever else sends has sent all it has.
        """
        if self._held:
            data, self._held = self._held + data, b""
        try:
            sent = self._sock.send(data)
        except OSError:  # full, or broken: flush() finds out which
            sent = 0
        if sent == len(data):
            return True
        self._held = data[sent:]
        return False


class Listener(StreamServer):  # type: ignore[misc]
    """Accepts Connections."""

    def do_read(self) -> tuple[Connection, Any] | None:
        """The next connection and its address; None when it has gone already."""
        listener: socket.socket = self.socket
        try:
            fd, address = listener._accept()  # type: ignore[attr-defined] # noqa: SLF001 - as gevent
        except BlockingIOError:
            return None
        return Connection(listener.family, listener.type, listener.proto, fileno=fd), address
