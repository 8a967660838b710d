"""The events of a response that is made in the background, for whoever asks for them, and when."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from octavo.errors import RequestError
from octavo.server.sse import KEEP_ALIVE, KEEP_ALIVE_S, named_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LOG_BYTES = 4 << 20
_END = b"\n\n"


class EventsGoneError(RequestError):
    """The events that were asked for are not kept any more: 404."""

    status = 404
    type = "not_found_error"
    code = "events_not_kept"


class EventRoom:
    """What the logs of all responses in the making may take together.

    Attributes:
        used: Bytes of events.
        limit: Of these.
    """

    def __init__(self, limit: int) -> None:
        self.used = 0
        self.limit = limit


class EventLog:
    """The latest events of one response, numbered from 0; the oldest make room.

    Attributes:
        num_bytes: Of the events that are kept.
        is_ended: No event will come any more.
    """

    def __init__(self, room: EventRoom) -> None:
        self.num_bytes = 0
        self.is_ended = False
        self._room: EventRoom | None = room
        self._first = 0  # the number of the oldest that is kept
        self._events: deque[bytes] = deque()
        self._changed = threading.Condition()

    def extend(self, events: bytes) -> None:
        """Append events; JSON has no line ends, so an empty line ends each."""
        with self._changed:
            for each in events.split(_END)[:-1]:
                self._events.append(each + _END)
                self._grow(len(each) + len(_END))
            while self._is_over():
                self._grow(-len(self._events.popleft()))
                self._first += 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let readers end, and stop counting as in the making."""
        with self._changed:
            if self._room is not None:
                self._room.used -= self.num_bytes
                self._room = None
            self.is_ended = True
            self._changed.notify_all()

    def check(self, after: int) -> None:
        """See whether the events behind a number are there, or may still come.

        Raises:
            EventsGoneError: Some of them are not kept any more.
        """
        if after + 1 < self._first:
            raise EventsGoneError(
                f"starting_after: only the events from {self._first} on are still kept.",
                param="starting_after",
            )

    def wait(self, until: Callable[[], bool], timeout: float) -> None:
        """Wait until a condition holds that events, the end or wake() can bring about."""
        with self._changed:
            self._changed.wait_for(until, timeout)

    def wake(self) -> None:
        """Have those who wait look again. Never blocks."""
        with self._changed:
            self._changed.notify_all()

    def read(self, after: int) -> bytes:
        """The events behind a number.

        Raises:
            EventsGoneError: Some of them are not kept any more.
        """
        with self._changed:
            self.check(after)
            return b"".join(islice(self._events, max(0, after + 1 - self._first), None))

    @property
    def last(self) -> int:
        """The number of the newest event; -1 before there is one."""
        return self._first + len(self._events) - 1

    def _grow(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self._room is not None:
            self._room.used += num_bytes

    def _is_over(self) -> bool:
        room = self._room
        is_crowded = room is not None and room.used > room.limit
        return len(self._events) > 1 and (is_crowded or self.num_bytes > MAX_LOG_BYTES)


class LogReader:
    """One reader's way through a log: a response body.

    Args:
        log: What is read.
        after: The number of the last event that the reader has; -1 for none.

    Raises:
        EventsGoneError: The next one is not kept any more.
    """

    def __init__(self, log: EventLog, after: int) -> None:
        log.check(after)
        self._log = log
        self._after = after
        self._is_closed = False

    def close(self) -> None:
        """The reader has gone. Never blocks."""
        self._is_closed = True
        self._log.wake()

    def fault(self, error: RequestError) -> bytes:
        """The last event of a reader that cannot go on."""
        return named_event(
            "error",
            {
                "type": "error",
                "sequence_number": self._after + 1,
                "code": str(error.code or error.type),
                "message": error.message,
                "param": error.param,
            },
        )

    def __iter__(self) -> Iterator[bytes]:
        """Events until the response has ended, and comments while nothing comes."""
        while not self._is_closed:
            self._log.wait(self._has_news, KEEP_ALIVE_S)
            is_ended = self._log.is_ended  # looked at first: what came before is then read
            if events := self._log.read(self._after):
                self._after += events.count(_END)
                yield events
            elif is_ended:
                return
            elif not self._is_closed:
                yield KEEP_ALIVE

    def _has_news(self) -> bool:
        return self._is_closed or self._log.is_ended or self._log.last > self._after
