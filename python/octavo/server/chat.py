"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from octavo.server.conversation import conversation_of, render
from octavo.server.disconnect import watch
from octavo.server.generation import Generation
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.schemas.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    ChunkChoice,
    Delta,
)
from octavo.server.sse import DONE, KEEP_ALIVE, event
from octavo.server.streaming import stream_generation
from octavo.server.work import Route, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    import falcon

    from octavo.engine.client import Logprob
    from octavo.model.detokenizer import TokenBytes
    from octavo.server.context import ServerContext
    from octavo.server.generation import Piece

_DECODER = msgspec.json.Decoder(ChatRequest)


class ChatResource:
    """Answers conversations."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer a conversation, n times."""
        context = self._context
        request = context.read(req, _DECODER)
        request.check()
        name = context.check_model(request.model)
        model, info = context.model(), context.model_info()
        text = render(conversation_of(request), model)
        work = plan(request, _route(request), [text], model, info)
        token_bytes = model.tokenizer.token_bytes
        generation = Generation(context, token_bytes, work, req.context.started)
        role = context.config.response_role
        answer = _Answer(request, name, token_bytes, generation, role)
        if request.stream:
            stream_generation(req, resp, generation, answer.events)
            return
        with generation, watch(req.env, generation.abort):
            resp.data = msgspec.json.encode(answer.whole())


def _route(request: ChatRequest) -> Route:
    return Route(
        param="messages",
        add_special_tokens=False,  # the template writes them
        max_tokens=request.requested_max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )


class _Answer:
    """Makes the response, or its chunks, of a generation."""

    def __init__(
        self,
        request: ChatRequest,
        name: str,
        token_bytes: TokenBytes,
        generation: Generation,
        role: str,
    ) -> None:
        self._request = request
        self._name = name
        self._token_bytes = token_bytes
        self._generation = generation
        last = request.messages[-1]
        self._role = role if request.add_generation_prompt is not False else last.role
        self._echo = "".join(last.texts("messages")) if self._echoes(last.role) else ""
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self) -> ChatResponse:
        """Wait for every choice."""
        generation = self._generation
        choices = [_Parts() for _ in range(generation.n)]
        for piece in generation:
            choices[piece.choice].take(piece)
        request = self._request
        response = ChatResponse(
            id=self._id,
            created=self._created,
            model=self._name,
            choices=[self._choice(index, parts) for index, parts in enumerate(choices)],
            usage=generation.usage(),
        )
        if request.prompt_logprobs is not None:
            scored = generation.prompt_logprobs[0]
            response.prompt_logprobs = prompt_logprobs(self._token_bytes, scored)
        if request.return_token_ids:
            response.prompt_token_ids = generation.prompts[0].token_ids
        return response

    def events(self, pieces: Iterator[Piece | None]) -> Iterator[bytes]:
        """The chunks of a stream."""
        request, generation = self._request, self._generation
        for index in range(generation.n):
            opening = ChunkChoice(index=index, delta=Delta(role=self._role, content=self._echo))
            chunk = self._chunk([opening])
            if request.return_token_ids:
                chunk.prompt_token_ids = generation.prompts[0].token_ids
            yield event(chunk)
        for piece in pieces:
            if piece is None:
                yield KEEP_ALIVE
            elif not piece.is_empty or piece.logprobs or request.return_token_ids:
                yield event(self._chunk([self._chunk_choice(piece)]))
        if request.includes_usage:
            last = self._chunk([])
            last.usage = generation.usage()
            yield event(last)
        yield DONE

    def _choice(self, index: int, parts: _Parts) -> ChatChoice:
        request, piece = self._request, parts.last
        choice = ChatChoice(
            index=index,
            message=AnswerMessage(role=self._role, content=self._echo + "".join(parts.texts)),
            logprobs=self._logprobs(parts.logprobs),
            finish_reason=piece.finish_reason if piece else "abort",
            stop_reason=piece.stop_reason if piece else None,
        )
        if request.return_token_ids:
            choice.token_ids = parts.token_ids
        return choice

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        always = self._request.includes_usage_always
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._name,
            choices=choices,
            usage=self._generation.usage() if always else UNSET,
        )

    def _chunk_choice(self, piece: Piece) -> ChunkChoice:
        choice = ChunkChoice(
            index=piece.choice,
            delta=Delta(content=piece.text) if piece.text else Delta(),
            logprobs=self._logprobs(piece.logprobs),
            finish_reason=piece.finish_reason,
        )
        if piece.finish_reason is not None:
            choice.stop_reason = piece.stop_reason
        if self._request.return_token_ids:
            choice.token_ids = piece.token_ids
        return choice

    def _logprobs(self, logprobs: list[list[Logprob]]) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        return ChatLogprobs(content=chat_logprobs(self._token_bytes, logprobs))

    def _echoes(self, last_role: str) -> bool:
        return bool(self._request.echo) and last_role == self._role


class _Parts:
    """What came of one choice so far."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[list[Logprob]] = []
        self.last: Piece | None = None

    def take(self, piece: Piece) -> None:
        """Append a piece."""
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.last = piece
