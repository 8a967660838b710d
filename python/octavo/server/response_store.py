"""Responses that later requests may ask for or go on from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import QueueFullError
from octavo.server.event_log import EventRoom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.server.background import BackgroundRun
    from octavo.server.event_log import EventLog
    from octavo.server.schemas.chat import ChatMessage

MAX_RESPONSES = 1024
MAX_BYTES = 64 << 20
MAX_RUNNING = 256
MAX_EVENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that has ended.

    Attributes:
        data: As it was answered.
        messages: The conversation up to and with its answer, without instructions.
        num_bytes: What it costs to keep, near enough.
        input_items: What it answers.
        status: How it ended.
        is_background: It was made in the background.
        log: Its events, where it was made so and streamed.
    """

    data: bytes
    messages: Sequence[ChatMessage]
    num_bytes: int
    input_items: Sequence[dict[str, Any]] = ()
    status: str = "completed"
    is_background: bool = False
    log: EventLog | None = None

    def body(self) -> bytes:
        """The response."""
        return self.data


class ResponseStore:
    """The latest responses of this process; the oldest make room. Beside them those in the making.

    Workers share no memory for it, so a server with several of them keeps nothing.

    Attributes:
        is_enabled: Anything is kept.
        event_room: For the events of those in the making.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self.event_room = EventRoom(MAX_EVENT_BYTES)
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._running: dict[str, BackgroundRun] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, id_: str) -> StoredResponse | None:
        """A response that has ended and is still kept."""
        return self._responses.get(id_)

    def running(self, id_: str) -> BackgroundRun | None:
        """A response in the making."""
        return self._running.get(id_)

    def check_room(self) -> None:
        """Refuse early what begin() would: others may still come between.

        Raises:
            QueueFullError: As many responses as are allowed run in the background already.
        """
        if len(self._running) >= MAX_RUNNING:
            raise QueueFullError("Too many responses run in the background. Try again later.")

    def begin(self, run: BackgroundRun) -> None:
        """Keep a response in the making until end().

        Raises:
            QueueFullError: As check_room().
        """
        with self._lock:
            self.check_room()
            self._running[run.id] = run

    def end(self, id_: str, response: StoredResponse) -> None:
        """Keep what has come of it, unless it was removed meanwhile."""
        if id_ in self._running:
            self.put(id_, response)
            self._running.pop(id_, None)

    def put(self, id_: str, response: StoredResponse) -> None:
        """Keep a response as long as there is room."""
        if not self.is_enabled or response.num_bytes > MAX_BYTES // 4:
            return
        with self._lock:
            self._responses[id_] = response
            self._num_bytes += response.num_bytes
            while len(self._responses) > MAX_RESPONSES or self._num_bytes > MAX_BYTES:
                _, oldest = self._responses.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def remove(self, id_: str) -> bool:
        """Forget a response, and stop its making; False where it is not kept."""
        run = self._running.pop(id_, None)
        if run is not None:
            run.cancel()
        with self._lock:
            response = self._responses.pop(id_, None)
            if response is not None:
                self._num_bytes -= response.num_bytes
        return run is not None or response is not None
