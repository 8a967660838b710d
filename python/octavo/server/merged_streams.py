"""The outputs of a call's requests, one after another as they come."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Protocol, TypeAlias

from octavo.errors import OctavoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.engine.client import RequestOutput, RequestStream


_MAX_QUEUED = 1024
_LOOK_S = 1.0  # how often a reader that waits looks whether anybody reads on

_Item: TypeAlias = "tuple[int, RequestOutput | OctavoError | None]"


class Outputs(Protocol):
    """Outputs of several streams with the index of the stream."""

    def get(self, timeout: float | None) -> tuple[int, RequestOutput] | None:
        """The next output; None after `timeout` seconds, or once is_finished.

        Raises:
            OctavoError: A stream failed.
        """

    @property
    def is_finished(self) -> bool:
        """No output will come any more."""

    def close(self) -> None:
        """End it: get() returns None from now on. Never blocks."""


class OneStream:
    """The usual case: nothing to merge."""

    def __init__(self, stream: RequestStream) -> None:
        self._stream = stream

    def get(self, timeout: float | None) -> tuple[int, RequestOutput] | None:
        """See Outputs."""
        output = self._stream.get(timeout)
        return None if output is None else (0, output)

    @property
    def is_finished(self) -> bool:
        """See Outputs."""
        return self._stream.is_finished

    def close(self) -> None:
        """See Outputs: there is nobody to stop."""


class MergedStreams:
    """A reader for each stream, all writing to one queue, in the order of arrival.

    The queue is bounded: where the client reads slowly the readers wait, and what comes meanwhile
    is merged in their streams.
    """

    def __init__(self, streams: Sequence[RequestStream]) -> None:
        self._queue: queue.Queue[_Item] = queue.Queue(_MAX_QUEUED)
        self._is_closed = False
        self._running = len(streams)
        for index, stream in enumerate(streams):
            threading.Thread(target=self._read, args=(index, stream), daemon=True).start()

    def get(self, timeout: float | None) -> tuple[int, RequestOutput] | None:
        """See Outputs."""
        while not self.is_finished:
            try:
                index, item = self._queue.get(timeout=timeout)
            except queue.Empty:
                return None
            if item is None:
                self._running -= 1
            elif isinstance(item, OctavoError):
                self._running = 0
                self._is_closed = True
                raise item
            else:
                return index, item
        return None

    @property
    def is_finished(self) -> bool:
        """See Outputs."""
        return self._running == 0 or self._is_closed

    def close(self) -> None:
        """See Outputs."""
        self._is_closed = True
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((0, None))  # wakes who waits in get()

    def _read(self, index: int, stream: RequestStream) -> None:
        try:
            for output in stream:
                self._put((index, output))
        except OctavoError as error:
            self._put((index, error))
        else:
            self._put((index, None))

    def _put(self, item: _Item) -> None:
        while not self._is_closed:
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_LOOK_S)
                return
