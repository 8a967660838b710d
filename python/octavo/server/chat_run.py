"""A conversation on its way through the engine, and its answer in parts.

What speaks another protocol than chat completions translates its request to a ChatRequest and its
answer from the same parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.server.conversation import conversation_of, render, tools_of
from octavo.server.generation import Generation
from octavo.server.parsers.answer import AnswerParser
from octavo.server.parsers.reasoning import OPEN, ReasoningParser
from octavo.server.parsers.registry import (
    FORCED,
    SHOWS_SPECIAL_TOKENS,
    TOOL_PARSERS,
    find_reasoning_parser,
    find_tool_parser,
)
from octavo.server.structured import chat_grammar
from octavo.server.work import Route, plan

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.server.context import ServerContext
    from octavo.server.generation import Piece
    from octavo.server.parsers.answer import Parts, ToolParser
    from octavo.server.schemas.chat import ChatRequest
    from octavo.server.served_model import ServedModel


class ChatRun:
    """A running chat.

    Attributes:
        request: What was asked.
        name: The model's name in the answer.
        token_bytes: For log-probabilities.
        generation: The engine's side.
        sampling: As the engine was told.
        role: Of the answer.
        echo: Text of the last message that the answer begins with.
    """

    def __init__(self, context: ServerContext, request: ChatRequest, started: float) -> None:
        if not request.messages:
            raise InvalidRequestError("messages: say nothing.", param="messages")
        request.check()
        self.request = request
        self.name = context.check_model(request.model)
        model = context.model()
        self._tools = tools_of(request)
        is_forced = request.forces_tool_call
        parser = _tool_parser(context.config, model, is_forced=is_forced) if self._tools else None
        text = prompt_text(request, model)
        thinking = _thinking(context.config, model, text)
        grammar = chat_grammar(request, self._tools, parser, model.tokenizer, reasons=thinking)
        route = _route(request, parser, grammar, context.adapter_of(self.name))
        work = plan(request, route, [text], model, context.model_info())
        self.token_bytes = model.tokenizer.token_bytes
        self._parsers = [
            AnswerParser(_reasoning(thinking), self._new_tool_parser(parser))
            for _ in range(work.sampling.n)
        ]
        self._num_calls = [0] * len(self._parsers)
        self.sampling = work.sampling
        self.role = _role(request, context.config)
        self.echo = _echo(request, self.role)
        self.generation = Generation(context, self.token_bytes, work, started)

    def parts(self, piece: Piece) -> Parts:
        """What a piece says."""
        parser = self._parsers[piece.choice]
        parts = parser.feed(piece.text)
        if piece.finish_reason is not None:
            parts.extend(parser.finish())
        if self.request.include_reasoning is False:
            parts.reasoning = ""
        if self.request.parallel_tool_calls is False:
            parts.calls = [call for call in parts.calls if call.index == 0]
        self._num_calls[piece.choice] += len(parts.calls)
        return parts

    def finish_reason(self, piece: Piece) -> str | None:
        """Why the choice ended; a model that called tools stopped for them."""
        if piece.finish_reason == "stop" and self._num_calls[piece.choice]:
            return "tool_calls"
        return piece.finish_reason

    def _new_tool_parser(self, name: str | None) -> ToolParser | None:
        if name is None:
            return None
        functions = [tool["function"] for tool in self._tools]
        return TOOL_PARSERS[name]({each["name"]: each["parameters"] for each in functions})


def prompt_text(request: ChatRequest, model: ServedModel) -> str:
    """The text that the answer of a conversation continues.

    Raises:
        InvalidRequestError: The model has no template, or it refuses the conversation.
    """
    return render(conversation_of(request), model, tools_of(request))


def _route(request: ChatRequest, parser: str | None, grammar: str | None, adapter: str) -> Route:
    return Route(
        param="messages",
        add_special_tokens=False,  # the template writes them
        max_tokens=request.requested_max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
        shows_special_tokens=parser in SHOWS_SPECIAL_TOKENS,
        grammar=grammar,
        adapter=adapter,
    )


def _tool_parser(config: ServeConfig, model: ServedModel, *, is_forced: bool) -> str | None:
    if not (config.enable_auto_tool_choice or is_forced):
        return None
    found = find_tool_parser(config.tool_call_parser, model.tokenizer.token_to_id)
    # A model without a format of its own can still be held to one.
    return found or (FORCED if is_forced else None)


def _thinking(config: ServeConfig, model: ServedModel, prompt: str) -> bool | None:
    """Whether the answer begins inside reasoning; None for a model that does not reason."""
    name = find_reasoning_parser(config.reasoning_parser, model.tokenizer.token_to_id)
    return None if name is None else prompt.rstrip().endswith(OPEN)


def _reasoning(is_inside: bool | None) -> ReasoningParser | None:
    return None if is_inside is None else ReasoningParser(is_inside=is_inside)


def _role(request: ChatRequest, config: ServeConfig) -> str:
    if request.add_generation_prompt is not False:
        return config.response_role
    return request.messages[-1].role


def _echo(request: ChatRequest, role: str) -> str:
    last = request.messages[-1]
    return "".join(last.texts("messages")) if request.echo and last.role == role else ""
