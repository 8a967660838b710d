"""The response object of /v1/responses, and its events, from the parts of a chat."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from octavo.server.logprobs import chat_logprobs
from octavo.server.response_input import shown_tools
from octavo.server.response_writer import ItemWriter
from octavo.server.schemas.decode import decode_free_form
from octavo.server.schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningOptions,
    Response,
    ResponseError,
    ResponseUsage,
)
from octavo.server.sse import KEEP_ALIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from octavo.errors import RequestError
    from octavo.server.chat_run import ChatRun
    from octavo.server.generation import Piece
    from octavo.server.schemas.responses import ResponseRequest


class ResponseAnswer:
    """Makes the response, or its events, of a chat.

    Attributes:
        response: As far as it has come.
        generation: What makes it.

    Args:
        request: What is answered.
        run: The chat.
        store: The response is kept.
        keep: Is given the response before a stream's last event.
    """

    keep_alive = KEEP_ALIVE

    def __init__(
        self,
        request: ResponseRequest,
        run: ChatRun,
        *,
        store: bool,
        keep: Callable[[Response], None] | None = None,
    ) -> None:
        self._run = run
        self._keep = keep
        self.generation = run.generation
        self._writer = ItemWriter()
        self._num_reasoning_tokens = 0
        self._unsent = b""  # the events of an item that was ended from outside
        sampling = run.sampling
        text_format = request.text.format if request.text else None
        self.response = Response(
            id=f"resp_{uuid.uuid4().hex}",
            created_at=int(time.time()),
            status="queued" if request.background else "in_progress",
            background=bool(request.background),
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            model=run.name,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            previous_response_id=request.previous_response_id,
            reasoning=request.reasoning or ReasoningOptions(),
            store=store,
            temperature=sampling.temperature,
            text={"format": _shown_format(text_format)},
            tool_choice=request.tool_choice or "auto",
            tools=shown_tools(request),
            top_logprobs=request.top_logprobs or 0,
            top_p=sampling.top_p,
            truncation=request.truncation or "disabled",
            user=request.user,
            metadata=request.metadata or {},
        )

    def whole(self) -> Response:
        """Wait for the answer."""
        for piece in self.generation:
            self.take(piece)
        return self.response

    def opening(self) -> bytes:
        """The first events."""
        created = self._whole_event("response.created")
        return created + self._whole_event(f"response.{self.response.status}")

    def take(self, piece: Piece) -> bytes:
        """The events of a piece."""
        events = b""
        if self.response.status == "queued":
            self.response.status = "in_progress"
            events = self._whole_event("response.in_progress")
        return events + b"".join(self._take(piece))

    def closing(self) -> bytes:
        """The last event."""
        if self._keep is not None:
            self._keep(self.response)
        return self._unsent + self._whole_event(f"response.{self.response.status}")

    def fault(self, error: RequestError) -> bytes:
        """The last event of a stream that fails."""
        self.fail(error)
        return self._unsent + self._whole_event("response.failed")

    def fail(self, error: RequestError) -> None:
        """End the response with an error."""
        self._end("failed")
        error_code = str(error.code or error.type)
        self.response.error = ResponseError(code=error_code, message=error.message)

    def cancel(self) -> None:
        """End the response as it is. Never blocks."""
        self._end("cancelled")
        self.generation.abort()

    def _end(self, status: str) -> None:
        self._unsent += b"".join(self._writer.finish("incomplete"))
        self.response.status = status
        self.response.output = self._writer.items

    def _take(self, piece: Piece) -> Iterator[bytes]:
        parts = self._run.parts(piece)
        if parts.reasoning:
            self._num_reasoning_tokens += len(piece.token_ids)
        yield from self._writer.take(parts, self._logprobs(piece))
        if piece.finish_reason is not None:
            status = "completed" if piece.finish_reason == "stop" else "incomplete"
            yield from self._writer.finish(status)
            self._finish(piece, status)

    def _finish(self, piece: Piece, status: str) -> None:
        response, usage = self.response, self._run.generation.usage()
        response.status = status
        if status == "incomplete":
            is_length = piece.finish_reason == "length"
            reason = "max_output_tokens" if is_length else "cancelled"
            response.incomplete_details = IncompleteDetails(reason=reason)
        response.output = self._writer.items
        details = usage.prompt_tokens_details
        cached = InputTokensDetails(cached_tokens=details.cached_tokens if details else 0)
        thought = OutputTokensDetails(reasoning_tokens=self._num_reasoning_tokens)
        response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=cached,
            output_tokens=usage.completion_tokens,
            output_tokens_details=thought,
            total_tokens=usage.total_tokens,
        )

    def _logprobs(self, piece: Piece) -> list[Any]:
        if not self._run.request.logprobs:
            return []
        return list(chat_logprobs(self._run.token_bytes, piece.logprobs))

    def _whole_event(self, kind: str) -> bytes:
        return self._writer.event(kind, response=self.response)


def _shown_format(text_format: Any) -> dict[str, Any]:
    if text_format is None or text_format.type != "json_schema":
        return {"type": "text" if text_format is None else text_format.type}
    return {
        "type": "json_schema",
        "name": text_format.name,
        "schema": decode_free_form(text_format.schema, "text.format.schema"),
        "strict": bool(text_format.strict),
    }
