"""The outputs of a call's requests, one after another as they come."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Protocol

from octavo.errors import OctavoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.engine.client import RequestOutput, RequestStream


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


class MergedStreams:
    """A reader for each stream, all writing to one queue, in the order of arrival."""

    def __init__(self, streams: Sequence[RequestStream]) -> None:
        self._queue: queue.Queue[tuple[int, RequestOutput | OctavoError | None]] = queue.Queue()
        self._running = len(streams)
        for index, stream in enumerate(streams):
            threading.Thread(target=self._read, args=(index, stream), daemon=True).start()

    def get(self, timeout: float | None) -> tuple[int, RequestOutput] | None:
        """See Outputs."""
        while self._running:
            try:
                index, item = self._queue.get(timeout=timeout)
            except queue.Empty:
                return None
            if item is None:
                self._running -= 1
            elif isinstance(item, OctavoError):
                self._running = 0
                raise item
            else:
                return index, item
        return None

    @property
    def is_finished(self) -> bool:
        """See Outputs."""
        return self._running == 0

    def _read(self, index: int, stream: RequestStream) -> None:
        try:
            for output in stream:
                self._queue.put((index, output))
        except OctavoError as error:
            self._queue.put((index, error))
        else:
            self._queue.put((index, None))
