"""Server-sent events: the framing, and a response body made of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import RequestError
from octavo.server.error_responses import InternalError, error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import falcon

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0

_LOG = logging.getLogger(__name__)
_ENCODER = msgspec.json.Encoder()


def event(data: object) -> bytes:
    """A nameless event with JSON data."""
    return b"data: %b\n\n" % _ENCODER.encode(data)


class TextEvents:
    """Events that differ in one string only, made without building their structs again.

    Args:
        data: An event's data, in which `mark` stands for the string.
        mark: Occurs once in it.
    """

    def __init__(self, data: object, mark: str) -> None:
        before, _, after = event(data).partition(_ENCODER.encode(mark))
        self._before, self._after = before, after

    def event(self, text: str) -> bytes:
        """The event with this string."""
        return self._before + _ENCODER.encode(text) + self._after


def named_event(name: str, data: object) -> bytes:
    """An event with a name and JSON data."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _ENCODER.encode(data))


def error_events(error: RequestError) -> bytes:
    """How a stream ends that fails after its first byte."""
    return event(error_body(error)) + DONE


class EventStream:
    """A response body; what goes wrong inside it becomes its last events.

    Args:
        events: The events, in order.
        close: Called once when the response is over, however it ends, even unread.
        describe: Turns a fault into last events.
    """

    def __init__(
        self,
        events: Iterator[bytes],
        close: Callable[[], None],
        describe: Callable[[RequestError], bytes] = error_events,
    ) -> None:
        self._events = events
        self._close = close
        self._describe = describe
        self._is_over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._is_over:
            raise StopIteration
        try:
            return next(self._events)
        except StopIteration:
            self._is_over = True
            raise
        except RequestError as error:
            self._is_over = True
            return self._describe(error)
        except OSError:  # the client's: it does not read, or is gone
            self._is_over = True
            raise
        except Exception:
            self._is_over = True
            _LOG.exception("A stream failed.")
            return self._describe(InternalError("The server failed while it answered."))

    def on_close(self, then: Callable[[], None]) -> None:
        """Call something after the response is over."""
        first = self._close

        def both() -> None:
            first()
            then()

        self._close = both

    def close(self) -> None:
        """Free what the response holds; the WSGI server calls it."""
        close, self._close = self._close, _nothing
        close()


def send_events(resp: falcon.Response, stream: EventStream) -> None:
    """Make a stream of events the body of a response."""
    resp.content_type = "text/event-stream; charset=utf-8"
    resp.set_header("Cache-Control", "no-cache")
    resp.set_header("X-Accel-Buffering", "no")  # nginx would collect events otherwise
    resp.stream = stream


def _nothing() -> None:
    return
