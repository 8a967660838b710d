"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import msgspec

from octavo.server.generation import Generation
from octavo.server.logprobs import CompletionColumns, extend, prompt_logprobs
from octavo.server.openapi import Operation
from octavo.server.prompts import split_prompts
from octavo.server.schemas.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from octavo.server.sse import DONE, KEEP_ALIVE, TextEvents, error_events, event
from octavo.server.streaming import stream_generation
from octavo.server.structured import answer_grammar, checked
from octavo.server.work import Route, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import falcon

    from octavo.engine.client import Logprob
    from octavo.model.detokenizer import TokenBytes
    from octavo.server.context import ServerContext
    from octavo.server.generation import Piece
    from octavo.server.schemas.shared import Usage

_DECODER = msgspec.json.Decoder(CompletionRequest)
_MARK = "\ue000"


class CompletionsResource:
    """Continues prompts."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Continue prompts",
            request=CompletionRequest,
            answer=CompletionResponse,
            streams=True,
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Continue one or several prompts, n times each."""
        context = self._context
        request = context.read(req, _DECODER, fits_context=True)
        request.check()
        name = context.check_model(request.model)
        model = context.model()
        inputs = split_prompts(request.prompt)
        route = _route(request, context.adapter_of(name))
        work = plan(request, route, inputs, model, context.model_info())
        token_bytes = model.tokenizer.token_bytes
        generation = Generation(context, token_bytes, work, req.context.started)
        answer = _Answer(request, name, token_bytes, generation)
        if request.stream:
            stream_generation(req, resp, generation, answer)
            return
        with generation, generation.attended(req.env):
            resp.data = msgspec.json.encode(answer.whole())


def _route(request: CompletionRequest, adapter: str) -> Route:
    echoed = request.logprobs if request.echo else None
    asked = [k for k in (request.prompt_logprobs, echoed) if k is not None]
    wanted = answer_grammar(request)
    return Route(
        param="prompt",
        add_special_tokens=True,
        max_tokens=request.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=request.logprobs,
        prompt_logprobs=max(asked, default=None),
        grammar=checked(*wanted) if wanted else None,
        adapter=adapter,
    )


class _Answer:
    """Makes the response, or its chunks, of a generation."""

    keep_alive = KEEP_ALIVE
    fault = staticmethod(error_events)

    def __init__(
        self,
        request: CompletionRequest,
        name: str,
        token_bytes: TokenBytes,
        generation: Generation,
    ) -> None:
        self._request = request
        self._token_bytes = token_bytes
        self._generation = generation
        self._head = CompletionResponse(
            id=f"cmpl-{uuid.uuid4().hex}", created=int(time.time()), model=name, choices=[]
        )
        skip = request.skip_special_tokens is not False
        self._columns = [
            CompletionColumns(token_bytes, skip_special_tokens=skip)
            for _ in range(len(generation.prompts) * generation.n)
        ]
        self._has_begun = [False] * len(self._columns)
        self._plain = self._plain_events()

    def whole(self) -> CompletionResponse:
        """Wait for every choice."""
        choices: dict[int, CompletionChoice] = {}
        texts: dict[int, list[str]] = {}
        for piece in self._generation:
            part = self._choice(piece)
            texts.setdefault(piece.choice, []).append(part.text)
            if piece.choice in choices:
                _append(choices[piece.choice], part)
            else:
                choices[piece.choice] = part
        for index, choice in choices.items():
            choice.text = "".join(texts[index])
        return self._response([choices[index] for index in sorted(choices)], usage=True)

    def opening(self) -> bytes:
        """See octavo.server.streaming.Answer: nothing is said before the first piece."""
        return b""

    def take(self, piece: Piece) -> bytes:
        """The chunk of a piece."""
        index = piece.choice
        if self._plain and piece.finish_reason is None and self._has_begun[index]:
            return self._plain[index].event(piece.text) if piece.text else b""
        choice = self._choice(piece)
        if not (choice.text or choice.finish_reason or choice.logprobs or choice.token_ids):
            return b""
        return event(self._response([choice], usage=self._request.includes_usage_always))

    def closing(self) -> bytes:
        """The last chunks."""
        if not self._request.includes_usage:
            return DONE
        return event(self._response([], usage=True)) + DONE

    def _plain_events(self) -> list[TextEvents]:
        """For chunks that carry nothing but text; empty where every chunk carries more."""
        request = self._request
        if not request.stream:
            return []
        is_plain = request.logprobs is None and not request.return_token_ids
        if not is_plain or request.includes_usage_always or request.max_tokens == 0:
            return []
        choices = (CompletionChoice(index=index, text=_MARK) for index in range(len(self._columns)))
        return [TextEvents(self._response([choice], usage=False), _MARK) for choice in choices]

    def _response(self, choices: list[CompletionChoice], *, usage: bool) -> CompletionResponse:
        head = self._head
        return CompletionResponse(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            usage=self._usage() if usage else msgspec.UNSET,
        )

    def _usage(self) -> Usage:
        usage = self._generation.usage()
        if self._request.max_tokens == 0:
            usage.completion_tokens = 0
            usage.total_tokens = usage.prompt_tokens
        return usage

    def _choice(self, piece: Piece) -> CompletionChoice:
        """One piece as a choice; the first one of a choice carries what comes before it."""
        request = self._request
        is_first = not self._has_begun[piece.choice]
        self._has_begun[piece.choice] = True
        is_shown = request.max_tokens != 0  # 0: the prompt is scored, nothing is continued
        choice = CompletionChoice(
            index=piece.choice,
            text=piece.text if is_shown else "",
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
        )
        if is_first:
            self._begin(choice)
        if request.logprobs is not None and is_shown:
            self._add_logprobs(choice, piece.token_ids, piece.logprobs)
        if request.return_token_ids:
            choice.token_ids = piece.token_ids if is_shown else []
        return choice

    def _begin(self, choice: CompletionChoice) -> None:
        """Add what belongs to the prompt."""
        request = self._request
        number = choice.index // self._generation.n
        prompt = self._generation.prompts[number]
        scored = self._generation.prompt_logprobs[number]
        if request.echo:
            choice.text = self._prompt_text(number) + choice.text
            if request.logprobs is not None:
                shown = [each[: 1 + request.logprobs] for each in scored]
                self._add_logprobs(choice, prompt.token_ids, [None, *shown])
        if request.prompt_logprobs is not None:
            shown = [each[: 1 + request.prompt_logprobs] for each in scored]
            choice.prompt_logprobs = prompt_logprobs(self._token_bytes, shown)
        if request.return_token_ids:
            choice.prompt_token_ids = prompt.token_ids

    def _prompt_text(self, number: int) -> str:
        prompt = self._generation.prompts[number]
        if prompt.text is not None:
            return prompt.text
        return self._token_bytes.decode(prompt.token_ids)

    def _add_logprobs(
        self,
        choice: CompletionChoice,
        token_ids: Sequence[int],
        logprobs: Sequence[Sequence[Logprob] | None],
    ) -> None:
        columns = self._columns[choice.index].take(token_ids, logprobs)
        if choice.logprobs is None:
            choice.logprobs = columns
        else:
            extend(choice.logprobs, columns)


def _append(choice: CompletionChoice, part: CompletionChoice) -> None:
    choice.finish_reason = part.finish_reason
    choice.stop_reason = part.stop_reason
    if isinstance(choice.logprobs, CompletionLogprobs) and part.logprobs is not None:
        extend(choice.logprobs, part.logprobs)
    if isinstance(choice.token_ids, list) and isinstance(part.token_ids, list):
        choice.token_ids += part.token_ids
