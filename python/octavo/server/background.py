"""Responses that are made while nobody waits for them."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import RequestError
from octavo.server.error_responses import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.server.response_answer import ResponseAnswer
    from octavo.server.schemas.responses import Response

_LOG = logging.getLogger(__name__)


class BackgroundRun:
    """One such response.

    Args:
        answer: Makes it.
        input_items: What it answers.
        keep: Is given the response once it has ended, however.
    """

    def __init__(
        self,
        answer: ResponseAnswer,
        input_items: Sequence[dict[str, object]],
        keep: Callable[[Response], None],
    ) -> None:
        self.input_items = input_items
        self._answer = answer
        self._keep = keep

    def start(self) -> None:
        """Make it in a thread; in a gunicorn worker that is a greenlet."""
        name = f"background-{self._answer.response.id}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

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
            with answer.generation:
                answer.whole()
        except RequestError as error:
            self._fail(error)
        except Exception:
            _LOG.exception("A background response failed.")
            self._fail(InternalError("The server failed while it answered."))
        finally:
            self._keep(answer.response)

    def _fail(self, error: RequestError) -> None:
        if self._answer.response.status != "cancelled":
            self._answer.fail(error)
