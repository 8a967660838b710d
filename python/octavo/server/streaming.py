"""A generation as the body of a streamed response.

While the response's greenlet waits for more, whoever brings the tokens also sends their events:
waking a greenlet for each would cost more than making the event and handing it to the kernel. What
the kernel does not take at once is left to the greenlet, and what comes meanwhile joins.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from octavo.server.connection import Connection
from octavo.server.sse import KEEP_ALIVE_S, EventStream, send_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    import falcon

    from octavo.engine.client import RequestOutput
    from octavo.errors import RequestError
    from octavo.server.generation import Generation, Piece


class Answer(Protocol):
    """Makes the events of a stream; each method returns any number of them, and never blocks.

    Attributes:
        keep_alive: Sent after 15 s without a piece.
    """

    keep_alive: bytes

    def opening(self) -> bytes:
        """The events before the first piece."""

    def take(self, piece: Piece) -> bytes:
        """The events of a piece."""

    def closing(self) -> bytes:
        """The events after the last piece."""

    def fault(self, error: RequestError) -> bytes:
        """The last events of a stream that fails."""


def stream_generation(
    req: falcon.Request, resp: falcon.Response, generation: Generation, answer: Answer
) -> None:
    """Stream the events that `answer` makes of a generation.

    The status line waits for the first piece, so that what the engine refuses has its own status.

    Raises:
        RequestError: The engine refused the request, or failed before the first piece.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(generation)
        stack.enter_context(generation.attended(req.env))
        first = generation.get(KEEP_ALIVE_S)
        close = stack.pop_all().close
    direct = _DirectWriter(generation, answer, _plain_connection(req))
    events = _events(first, generation, answer, direct)
    send_events(resp, EventStream(events, close, answer.fault))


def _events(
    first: Piece | None, generation: Generation, answer: Answer, direct: _DirectWriter
) -> Iterator[bytes]:
    events = answer.opening()
    piece = first
    while piece is not None or not generation.is_finished:
        if piece is not None:
            events += answer.take(piece)
        elif not direct.settle():
            events += answer.keep_alive
        yield events
        direct.begin()  # the head has been sent
        piece, events = generation.get(KEEP_ALIVE_S), b""
    direct.settle()
    if last := events + answer.closing():
        yield last


def _plain_connection(req: falcon.Request) -> Connection | None:
    """The connection of a response that is sent in chunks and not encrypted."""
    connection = req.env.get("gunicorn.socket")
    in_chunks = req.env.get("SERVER_PROTOCOL") == "HTTP/1.1"
    return connection if in_chunks and isinstance(connection, Connection) else None


class _DirectWriter:
    """Sends the events of pieces while the response's greenlet waits for one.

    Args:
        generation: Makes the pieces.
        answer: Makes their events.
        connection: Where the response goes; None leaves all to the greenlet.
    """

    def __init__(
        self, generation: Generation, answer: Answer, connection: Connection | None
    ) -> None:
        self._generation = generation
        self._answer = answer
        self._connection = connection
        self._has_begun = connection is None
        self._has_called = False
        self._error: Exception | None = None

    def begin(self) -> None:
        """Take outputs from now on. Requires: the response's head has been sent."""
        if not self._has_begun:
            self._has_begun = True
            self._generation.divert(self._take)

    def settle(self) -> bool:
        """Do what the greenlet was called for; False where it was not.

        Raises:
            OSError: The client does not read, or is gone.
            Exception: What making an event has raised.
        """
        if not self._has_called:
            return False
        self._has_called = False
        if self._error is not None:
            raise self._error
        if self._connection is not None:
            self._connection.flush()
        return True

    def _take(self, output: RequestOutput) -> bool:
        """See RequestStream.divert()."""
        try:
            piece = self._generation.take(output)
            events = b"" if piece is None else self._answer.take(piece)
        except Exception as error:
            self._error = error
            self._has_called = True
            return False
        if not events:
            return True
        assert self._connection is not None
        if self._connection.push(b"%x\r\n%b\r\n" % (len(events), events)):
            return True
        self._has_called = True
        return False
