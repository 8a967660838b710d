"""The frames of octavo.engine.protocol: making them, sending them, cutting them out of a stream."""

from __future__ import annotations

import _socket
import socket
from typing import TypeVar

import msgspec

from octavo.engine.protocol import LENGTH, MAX_FRAME_BYTES

T = TypeVar("T")


class FrameError(Exception):
    """The peer does not speak the protocol."""


def encode(message: msgspec.Struct, encoder: msgspec.msgpack.Encoder) -> bytes:
    """A message as a frame.

    Raises:
        FrameError: It is larger than a frame may be.
    """
    frame = bytearray(LENGTH.size)
    encoder.encode_into(message, frame, LENGTH.size)
    size = len(frame) - LENGTH.size
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    LENGTH.pack_into(frame, 0, size)
    return bytes(frame)


def send_now(connection: socket.socket, frame: bytes) -> int:
    """Bytes that the socket has room for; never blocks, in gevent's loop neither."""
    system_socket = getattr(connection, "_sock", connection)  # gevent's hold one
    try:
        return _socket.socket.send(system_socket, frame, socket.MSG_DONTWAIT)
    except OSError:  # full, or broken: the writer finds out which
        return 0


def decode(frame: memoryview, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """The message of a frame's body.

    Raises:
        FrameError: It is none.
    """
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a message: {error}") from None


class FrameBuffer:
    """Bytes that came in, until they make whole frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """The bodies of the frames that `data` completes; good until it is changed.

        Raises:
            FrameError: A frame announces more than MAX_FRAME_BYTES.
        """
        if self._data:
            self._data += data
        view, frames = memoryview(self._data or data), []
        start = 0
        while (body := start + LENGTH.size) <= len(view):
            (size,) = LENGTH.unpack_from(view, start)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
            if body + size > len(view):
                break
            frames.append(view[body : body + size])
            start = body + size
        if start or not self._data:
            self._data = bytearray(view[start:])
        return frames
