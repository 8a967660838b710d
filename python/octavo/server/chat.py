"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from octavo.server.chat_run import ChatRun
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.openapi import Operation
from octavo.server.schemas.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    ChunkChoice,
    Delta,
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from octavo.server.sse import DONE, KEEP_ALIVE, TextEvents, error_events, event
from octavo.server.streaming import stream_generation

if TYPE_CHECKING:
    from collections.abc import Sequence

    import falcon

    from octavo.engine.client import Logprob
    from octavo.server.context import ServerContext
    from octavo.server.generation import Piece
    from octavo.server.parsers.answer import CallDelta, Parts

_DECODER = msgspec.json.Decoder(ChatRequest)
_MARK = "\ue000"


class ChatResource:
    """Answers conversations."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Answer a conversation",
            request=ChatRequest,
            answer=ChatResponse,
            streams=True,
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer a conversation, n times."""
        request = self._context.read(req, _DECODER)
        run = ChatRun(self._context, request, req.context.started)
        answer = _Answer(run)
        if request.stream:
            stream_generation(req, resp, run.generation, answer)
            return
        with run.generation as generation, generation.attended(req.env):
            resp.data = msgspec.json.encode(answer.whole())


class _Answer:
    """Makes the response, or its chunks, of a chat."""

    keep_alive = KEEP_ALIVE
    fault = staticmethod(error_events)

    def __init__(self, run: ChatRun) -> None:
        self._run = run
        self._request = run.request
        self._generation = run.generation
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._plain = self._plain_events()

    def whole(self) -> ChatResponse:
        """Wait for every choice."""
        run, generation = self._run, self._generation
        choices = [_Collected() for _ in range(generation.n)]
        for piece in generation:
            choices[piece.choice].take(piece, run.parts(piece))
        response = ChatResponse(
            id=self._id,
            created=self._created,
            model=run.name,
            choices=[self._choice(index, each) for index, each in enumerate(choices)],
            usage=generation.usage(),
        )
        if self._request.prompt_logprobs is not None:
            scored = generation.prompt_logprobs[0]
            response.prompt_logprobs = prompt_logprobs(run.token_bytes, scored)
        if self._request.return_token_ids:
            response.prompt_token_ids = generation.prompts[0].token_ids
        return response

    def opening(self) -> bytes:
        """The first chunk of each choice has the role."""
        return b"".join(map(self._opening, range(self._generation.n)))

    def take(self, piece: Piece) -> bytes:
        """The chunk of a piece."""
        parts = self._run.parts(piece)
        if self._plain and piece.finish_reason is None and parts.is_only_content:
            return self._plain[piece.choice].event(parts.content)
        if parts or piece.finish_reason or piece.logprobs or self._request.return_token_ids:
            return event(self._chunk([self._chunk_choice(piece, parts)]))
        return b""

    def closing(self) -> bytes:
        """The last chunks."""
        if not self._request.includes_usage:
            return DONE
        last = self._chunk([])
        last.usage = self._generation.usage()
        return event(last) + DONE

    def _opening(self, index: int) -> bytes:
        delta = Delta(role=self._run.role, content=self._run.echo)
        chunk = self._chunk([ChunkChoice(index=index, delta=delta)])
        if self._request.return_token_ids:
            chunk.prompt_token_ids = self._generation.prompts[0].token_ids
        return event(chunk)

    def _plain_events(self) -> list[TextEvents]:
        """For chunks that carry nothing but text; empty where every chunk carries more."""
        request = self._request
        is_plain = not request.logprobs and not request.return_token_ids
        if not (request.stream and is_plain) or request.includes_usage_always:
            return []
        choices = (
            ChunkChoice(index=index, delta=Delta(content=_MARK))
            for index in range(self._generation.n)
        )
        return [TextEvents(self._chunk([choice]), _MARK) for choice in choices]

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        always = self._request.includes_usage_always
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._run.name,
            choices=choices,
            usage=self._generation.usage() if always else UNSET,
        )

    def _chunk_choice(self, piece: Piece, parts: Parts) -> ChunkChoice:
        choice = ChunkChoice(
            index=piece.choice,
            delta=_delta(parts),
            logprobs=self._logprobs(piece.logprobs),
            finish_reason=self._run.finish_reason(piece),
        )
        if piece.finish_reason is not None:
            choice.stop_reason = piece.stop_reason
        if self._request.return_token_ids:
            choice.token_ids = piece.token_ids
        return choice

    def _choice(self, index: int, collected: _Collected) -> ChatChoice:
        last = collected.last
        choice = ChatChoice(
            index=index,
            message=self._message(collected),
            logprobs=self._logprobs(collected.logprobs),
            finish_reason=self._run.finish_reason(last) if last else "abort",
            stop_reason=last.stop_reason if last else None,
        )
        if self._request.return_token_ids:
            choice.token_ids = collected.token_ids
        return choice

    def _message(self, collected: _Collected) -> AnswerMessage:
        content = self._run.echo + "".join(collected.contents)
        message = AnswerMessage(role=self._run.role, content=content)
        if collected.reasonings:
            message.reasoning_content = "".join(collected.reasonings)
        if collected.calls:
            message.tool_calls = joined_calls(collected.calls)
            message.content = content or None
        return message

    def _logprobs(self, logprobs: list[list[Logprob]]) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        return ChatLogprobs(content=chat_logprobs(self._run.token_bytes, logprobs))


class _Collected:
    """What came of one choice so far."""

    def __init__(self) -> None:
        self.contents: list[str] = []
        self.reasonings: list[str] = []
        self.calls: list[CallDelta] = []
        self.token_ids: list[int] = []
        self.logprobs: list[list[Logprob]] = []
        self.last: Piece | None = None

    def take(self, piece: Piece, parts: Parts) -> None:
        """Append a piece."""
        self.contents.append(parts.content)
        if parts.reasoning:
            self.reasonings.append(parts.reasoning)
        self.calls += parts.calls
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.last = piece


def joined_calls(deltas: Sequence[CallDelta]) -> list[ToolCall]:
    """Whole calls of their deltas."""
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        if delta.name is not None:
            calls.append(ToolCall(id=delta.id, function=FunctionCall(name=delta.name)))
            arguments.append([])
        arguments[delta.index].append(delta.arguments)
    for call, texts in zip(calls, arguments, strict=True):
        call.function.arguments = "".join(texts)
    return calls


def _delta(parts: Parts) -> Delta:
    return Delta(
        content=parts.content or UNSET,
        reasoning_content=parts.reasoning or UNSET,
        tool_calls=[_call_delta(call) for call in parts.calls] or UNSET,
    )


def _call_delta(call: CallDelta) -> ToolCallDelta:
    if call.name is None:
        function = FunctionCallDelta(arguments=call.arguments)
        return ToolCallDelta(index=call.index, function=function)
    function = FunctionCallDelta(name=call.name, arguments=call.arguments)
    return ToolCallDelta(index=call.index, id=call.id or UNSET, type="function", function=function)
