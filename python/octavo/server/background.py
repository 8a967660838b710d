"""Responses that are made whether or not anybody waits for them."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import RequestError
from octavo.logs import LOGGER_NAME
from octavo.server.error_responses import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.server.event_log import EventLog
    from octavo.server.response_answer import ResponseAnswer
    from octavo.server.schemas.responses import Response

_LOG = logging.getLogger(__name__)
_ACCESS_LOG = logging.getLogger(f"{LOGGER_NAME}.access")


class BackgroundRun:
    """One such response.

    Args:
        answer: Makes it.
        input_items: What it answers.
        keep: Is given the response once it has ended, however.
        log: Takes its events; None for one that is only polled.

    Attributes:
        id: The response's.
        log: As given.
        request_id: For the line that is logged at its end; None writes none.
    """

    def __init__(
        self,
        answer: ResponseAnswer,
        input_items: Sequence[dict[str, object]],
        keep: Callable[[Response], None],
        log: EventLog | None = None,
    ) -> None:
        self.id = answer.response.id
        self.input_items = input_items
        self.log = log
        self.request_id: str | None = None
        self._answer = answer
        self._keep = keep
        self._began = time.monotonic()

    def start(self) -> None:
        """Make it in a thread; in a gunicorn worker that is a greenlet."""
        threading.Thread(target=self._run, name=f"background-{self.id}", daemon=True).start()

    def body(self) -> bytes:
        """The response as far as it has come."""
        return msgspec.json.encode(self._answer.response)

    def cancel(self) -> bytes:
        """Stop it and free what it holds in the engine. Never blocks."""
        self._answer.cancel()
        return self.body()

    def _run(self) -> None:
        answer = self._answer
        try:
            with answer.generation as generation:
                self._tell(answer.opening())
                for piece in generation:
                    self._tell(answer.take(piece))
                self._tell(answer.closing())
        except RequestError as error:
            self._fail(error)
        except Exception:
            _LOG.exception("A background response failed.")
            self._fail(InternalError("The server failed while it answered."))
        finally:
            if self.log is not None:
                self.log.end()
            self._keep(answer.response)
            self._write_line()

    def _tell(self, events: bytes) -> None:
        if self.log is not None:
            self.log.extend(events)

    def _fail(self, error: RequestError) -> None:
        if self._answer.response.status != "cancelled":
            self._tell(self._answer.fault(error))
        else:
            self._tell(self._answer.closing())

    def _write_line(self) -> None:
        """The request's own line was written when it was accepted, before any token."""
        if self.request_id is None:
            return
        seconds, status = time.monotonic() - self._began, self._answer.response.status
        _ACCESS_LOG.info(
            'background "%s" %s %.3f s',
            *(self.id, status, seconds),
            extra={
                "fields": {
                    "response_id": self.id,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "request_id": self.request_id,
                    **self._answer.generation.report().fields(),
                }
            },
        )
