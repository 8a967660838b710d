"""POST /v1/responses; GET and DELETE of those that are kept."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError, RequestError
from octavo.server.chat_run import ChatRun
from octavo.server.error_responses import renamed_param
from octavo.server.logprobs import chat_logprobs
from octavo.server.openapi import Operation
from octavo.server.response_input import PARAMS, chat_request, input_messages, shown_tools
from octavo.server.response_store import ResponseStore, StoredResponse
from octavo.server.response_writer import ItemWriter
from octavo.server.schemas.chat import ChatMessage, FunctionCall, ToolCall
from octavo.server.schemas.decode import decode_free_form
from octavo.server.schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    ReasoningOptions,
    Response,
    ResponseError,
    ResponseRequest,
    ResponseUsage,
)
from octavo.server.sse import KEEP_ALIVE
from octavo.server.streaming import stream_generation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import falcon

    from octavo.server.context import ServerContext
    from octavo.server.generation import Piece

_DECODER = msgspec.json.Decoder(ResponseRequest)


class UnknownResponseError(RequestError):
    """A response that is not kept here: 404."""

    status = 404
    type = "not_found_error"
    code = "response_not_found"


class ResponsesResource:
    """Answers inputs."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Answer an input", request=ResponseRequest, answer=Response, streams=True
        )
    }

    def __init__(self, context: ServerContext, store: ResponseStore) -> None:
        self._context = context
        self._store = store

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer an input."""
        request = self._context.read(req, _DECODER)
        _check(request)
        earlier = self._earlier(request)
        with renamed_param(PARAMS):
            chat = chat_request(request, earlier)
            run = ChatRun(self._context, chat, req.context.started)
        keeps = self._store.is_enabled and request.store is not False
        answer = _Answer(request, run, store=keeps)
        conversation = [*earlier, *input_messages(request.input)]

        def keep(response: Response) -> None:
            if keeps:
                self._store.put(response.id, _stored(response, conversation))

        if request.stream:
            stream_generation(
                req, resp, run.generation, lambda pieces: answer.events(pieces, keep), answer.fault
            )
            return
        with run.generation as generation, generation.attended(req.env):
            response = answer.whole()
            keep(response)
            resp.data = msgspec.json.encode(response)

    def _earlier(self, request: ResponseRequest) -> Sequence[ChatMessage]:
        if request.previous_response_id is None:
            return ()
        stored = self._store.get(request.previous_response_id)
        if stored is None:
            raise UnknownResponseError(
                "previous_response_id: this response is not kept here.",
                param="previous_response_id",
            )
        return stored.messages


class ResponseResource:
    """One response that is kept."""

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="A response that is kept", answer=Response),
        "delete": Operation(summary="Forget a response"),
    }

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, _req: falcon.Request, resp: falcon.Response, response_id: str) -> None:
        """As it was answered."""
        stored = self._store.get(response_id)
        if stored is None:
            raise UnknownResponseError("This response is not kept here.")
        resp.data = stored.body

    on_head = on_get

    def on_delete(self, _req: falcon.Request, resp: falcon.Response, response_id: str) -> None:
        """Forget it."""
        if not self._store.remove(response_id):
            raise UnknownResponseError("This response is not kept here.")
        deleted = {"id": response_id, "object": "response", "deleted": True}
        resp.data = msgspec.json.encode(deleted)


class CancelResponseResource:
    """Cancels responses that run in the background, of which there are none."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(summary="Cancel a response that runs in the background")
    }

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_post(self, _req: falcon.Request, _resp: falcon.Response, response_id: str) -> None:
        """Say that there is nothing to cancel."""
        if self._store.get(response_id) is None:
            raise UnknownResponseError("This response is not kept here.")
        raise InvalidRequestError("This response is complete and cannot be cancelled.")


class _Answer:
    """Makes the response, or its events, of a chat."""

    def __init__(self, request: ResponseRequest, run: ChatRun, *, store: bool) -> None:
        self._run = run
        self._writer = ItemWriter()
        self._num_reasoning_tokens = 0
        sampling = run.sampling
        text_format = request.text.format if request.text else None
        self._response = Response(
            id=f"resp_{uuid.uuid4().hex}",
            created_at=int(time.time()),
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
        for piece in self._run.generation:
            for _ in self._take(piece):
                pass
        return self._response

    def events(self, pieces: Iterator[Piece | None], keep: Any) -> Iterator[bytes]:
        """The events of a stream."""
        yield self._whole_event("response.created")
        yield self._whole_event("response.in_progress")
        for piece in pieces:
            if piece is None:
                yield KEEP_ALIVE
            else:
                yield from self._take(piece)
        keep(self._response)
        yield self._whole_event(f"response.{self._response.status}")

    def fault(self, error: RequestError) -> bytes:
        """The last event of a stream that fails."""
        response = self._response
        response.status = "failed"
        response.output = self._writer.items
        response.error = ResponseError(code=str(error.code or error.type), message=error.message)
        return self._whole_event("response.failed")

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
        response, usage = self._response, self._run.generation.usage()
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
        return self._writer.event(kind, response=self._response)


def _check(request: ResponseRequest) -> None:
    if request.background:
        raise InvalidRequestError("background: is not supported.", param="background")


def _shown_format(text_format: Any) -> dict[str, Any]:
    if text_format is None or text_format.type != "json_schema":
        return {"type": "text" if text_format is None else text_format.type}
    return {
        "type": "json_schema",
        "name": text_format.name,
        "schema": decode_free_form(text_format.schema, "text.format.schema"),
        "strict": bool(text_format.strict),
    }


def _stored(response: Response, conversation: Sequence[ChatMessage]) -> StoredResponse:
    body = msgspec.json.encode(response)
    messages = [*conversation, *_answer_messages(response.output)]
    size = len(body) + sum(len(msgspec.json.encode(message)) for message in messages)
    return StoredResponse(body, messages, size)


def _answer_messages(output: Sequence[OutputItem]) -> list[ChatMessage]:
    """The answer as an assistant's message of the conversation."""
    message = ChatMessage(role="assistant")
    calls = []
    for item in output:
        parts = item.content if isinstance(item.content, list) else []
        text = "".join(part.text for part in parts)
        if item.type == "message":
            message.content = text
        elif item.type == "reasoning":
            message.reasoning_content = text
        else:
            function = FunctionCall(name=str(item.name), arguments=str(item.arguments))
            calls.append(ToolCall(id=str(item.call_id), function=function))
    message.tool_calls = calls or None
    return [message] if output else []
