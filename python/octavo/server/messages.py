"""POST /v1/messages and /v1/messages/count_tokens, in Anthropic's shapes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.server.chat_run import ChatRun, prompt_text
from octavo.server.error_responses import renamed_param
from octavo.server.message_input import PARAMS, chat_request, conversation_request
from octavo.server.offload import offload
from octavo.server.openapi import Operation
from octavo.server.schemas.messages import (
    CountTokensRequest,
    Message,
    MessageError,
    MessageErrorDetail,
    MessagesRequest,
    MessageUsage,
    OutputBlock,
    TokenCount,
)
from octavo.server.sse import named_event
from octavo.server.streaming import stream_generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import falcon

    from octavo.errors import RequestError
    from octavo.server.context import ServerContext
    from octavo.server.generation import Piece
    from octavo.server.parsers.answer import CallDelta, Parts

_DECODER = msgspec.json.Decoder(MessagesRequest)
_COUNT_DECODER = msgspec.json.Decoder(CountTokensRequest)

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


def message_error_body(error: RequestError) -> MessageError:
    """The body of an error as Anthropic's clients expect it."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error")
    return MessageError(error=MessageErrorDetail(type=kind, message=error.message))


class MessagesResource:
    """Answers conversations."""

    error_body = staticmethod(message_error_body)

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Answer a conversation, in Anthropic's shape",
            request=MessagesRequest,
            answer=Message,
            streams=True,
            error=MessageError,
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer a conversation."""
        request = self._context.read(req, _DECODER)
        with renamed_param(PARAMS):
            run = ChatRun(self._context, chat_request(request), req.context.started)
        answer = _Answer(run)
        if request.stream:
            stream_generation(req, resp, run.generation, answer)
            return
        with run.generation as generation, generation.attended(req.env):
            resp.data = msgspec.json.encode(answer.whole())


class CountTokensResource:
    """Counts the tokens of conversations."""

    error_body = staticmethod(message_error_body)

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Count the tokens of a conversation",
            request=CountTokensRequest,
            answer=TokenCount,
            error=MessageError,
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The number of tokens that the model would be given."""
        request = self._context.read(req, _COUNT_DECODER)
        self._context.check_model(request.model)
        model = self._context.model()
        text = prompt_text(conversation_request(request), model)
        token_ids = offload(model.tokenizer.encode, text, add_special_tokens=False)
        resp.data = msgspec.json.encode(TokenCount(input_tokens=len(token_ids)))


class _Answer:
    """Makes the message, or its events, of a chat. Both come from one walk over the parts."""

    keep_alive = named_event("ping", {"type": "ping"})

    def __init__(self, run: ChatRun) -> None:
        self._run = run
        self._texts: list[str] = []  # of the last block
        self._is_open = False
        self._message = Message(id=f"msg_{uuid.uuid4().hex}", model=run.name, usage=MessageUsage())

    def whole(self) -> Message:
        """Wait for the answer."""
        for piece in self._run.generation:
            self.take(piece)
        self._count()
        return self._message

    def opening(self) -> bytes:
        """The first event has the message without its content."""
        self._count()
        self._message.usage.output_tokens = 0
        return _event("message_start", message=self._message)

    def take(self, piece: Piece) -> bytes:
        """The events of a piece."""
        return b"".join(self._take(piece))

    def closing(self) -> bytes:
        """The last events."""
        self._count()
        message = self._message
        delta = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
        last = _event("message_delta", delta=delta, usage=message.usage)
        return last + _event("message_stop")

    def fault(self, error: RequestError) -> bytes:
        """The last event of a stream that fails."""
        return named_event("error", message_error_body(error))

    def _take(self, piece: Piece) -> Iterator[bytes]:
        yield from self._write(self._run.parts(piece))
        if piece.finish_reason is None:
            return
        yield from self._close()
        message = self._message
        reason = self._run.finish_reason(piece) or "stop"
        message.stop_reason = _STOP_REASONS.get(reason, "end_turn")
        if isinstance(piece.stop_reason, str):
            message.stop_reason, message.stop_sequence = "stop_sequence", piece.stop_reason

    def _write(self, parts: Parts) -> Iterator[bytes]:
        if parts.reasoning:
            yield from self._enter("thinking", thinking="", signature="")
            yield self._delta(parts.reasoning, type="thinking_delta", thinking=parts.reasoning)
        if parts.content:
            yield from self._enter("text", text="")
            yield self._delta(parts.content, type="text_delta", text=parts.content)
        for call in parts.calls:
            yield from self._write_call(call)

    def _write_call(self, call: CallDelta) -> Iterator[bytes]:
        if call.name is not None:
            yield from self._open(
                OutputBlock(type="tool_use", id=call.id or "", name=call.name, input={})
            )
        if call.arguments:
            yield self._delta(call.arguments, type="input_json_delta", partial_json=call.arguments)

    def _enter(self, kind: str, **fields: Any) -> Iterator[bytes]:
        """Make sure that the last block is an open one of this kind."""
        if not (self._is_open and self._message.content[-1].type == kind):
            yield from self._open(OutputBlock(type=kind, **fields))

    def _open(self, block: OutputBlock) -> Iterator[bytes]:
        yield from self._close()
        self._is_open = True
        self._message.content.append(block)
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, text: str, /, **delta: Any) -> bytes:
        self._texts.append(text)
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[bytes]:
        """End the last block and put its text into it."""
        if not self._is_open:
            return
        block, text = self._message.content[-1], "".join(self._texts)
        self._is_open, self._texts = False, []
        if block.type == "tool_use":
            block.input = _json_object(text)
        elif block.type == "text":
            block.text = text
        else:
            block.thinking = text
        yield _event("content_block_stop", index=self._index)

    @property
    def _index(self) -> int:
        return len(self._message.content) - 1

    def _count(self) -> None:
        usage = self._run.generation.usage()
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        self._message.usage = MessageUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
        )


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})


def _json_object(text: str) -> dict[str, Any]:
    """The arguments of a call; a cut-off call has none that can be read."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
