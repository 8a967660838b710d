"""Rendering of chats: the model's Jinja template in a sandbox, within a deadline.

Templates get the same names and extras as in Hugging Face transformers. They come with the model,
never with a request: the sandbox lets them reach data only, every loop and macro watches the clock,
the output is bounded by the input, and what makes much of a number alone (padding, repetition) is
refused. A template that is written to exhaust memory can still cost an HTTP worker.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jinja2.parser import Parser

MAX_RENDER_SECONDS = 2.0
_OUTPUT_PER_INPUT = 4
_OUTPUT_SLACK = 64 << 10  # characters; for what a template adds to short chats
_MAX_REPEATED = 1 << 20  # elements of the product of a sequence and a number
_MAX_POWER = 64

# What turns one number into that many characters or elements.
_PADDING_FILTERS = ("batch", "center", "format", "indent", "slice", "wordwrap")
_PADDING_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_WIDE_FORMAT = re.compile(r"\*|\d{4}")
_MAX_INDENT = 64

_TICK = "octavo_tick"
_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", _TICK}
)

Message = dict[str, Any]


class ChatTemplate:
    """A model's chat template, compiled once. Thread-safe.

    Attributes:
        source: The template's text.
        wants_parts: Whether the template takes message content as a list of parts; otherwise parts
            are joined to one text.

    Raises:
        UnsupportedModelError: The template is not valid.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        tool_source: str | None = None,
    ) -> None:
        environment = _Environment()
        self._template = _compile(environment, source)
        self._tool_template = (
            self._template if tool_source is None else _compile(environment, tool_source)
        )
        self._slack = _OUTPUT_SLACK + _OUTPUT_PER_INPUT * len(source)
        self._special_tokens = dict(special_tokens or {})
        self.source = source
        self.wants_parts = _loops_over_content(environment.parse(source))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a chat.

        Args:
            messages: OpenAI's messages: role, content, tool_calls, tool_call_id, name.
            tools: OpenAI's tool definitions; None or empty for none.
            add_generation_prompt: End with what begins an answer.
            continue_final_message: End inside the last message, so that the model goes on with it.
            template_kwargs: More variables of the template.

        Raises:
            InvalidRequestError: The template refuses the chat, or takes too long or writes too
                much.
        """
        if not messages:
            raise InvalidRequestError("A chat needs a message.", param="messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other.",
                param="continue_final_message",
            )
        variables = self._variables(tools, template_kwargs)
        variables["add_generation_prompt"] = add_generation_prompt
        prepared = [self._prepared(message) for message in messages]
        if continue_final_message:
            return self._render_open(prepared, variables)
        return self._run(prepared, variables)

    def _variables(
        self, tools: Sequence[Mapping[str, Any]] | None, given: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        given = given or {}
        if clash := _RESERVED & given.keys():
            raise InvalidRequestError(
                f"{', '.join(sorted(clash))} cannot be set.", param="chat_template_kwargs"
            )
        return {**self._special_tokens, **given, "tools": tools or None, "documents": None}

    def _prepared(self, message: Message) -> Message:
        """The message as templates expect it: content never null, arguments of calls parsed."""
        prepared = dict(message)
        content = prepared.get("content")
        if content is None:
            prepared["content"] = ""
        elif isinstance(content, list) and not self.wants_parts:
            prepared["content"] = _joined(content)
        if prepared.get("tool_calls"):
            prepared["tool_calls"] = [_parsed_call(call) for call in prepared["tool_calls"]]
        return prepared

    def _render_open(self, messages: list[Message], variables: dict[str, Any]) -> str:
        """Cut the prompt after the last message's text, found by a mark behind it."""
        mark = f"\ue000{secrets.token_hex(8)}\ue000"
        text = _final_text(messages[-1])
        marked = [*messages[:-1], _with_final_text(messages[-1], text + mark)]
        begin, found, _ = self._run(marked, variables).partition(mark)
        if not found:
            raise InvalidRequestError(
                "The chat template drops the final message, so it cannot be continued.",
                param="continue_final_message",
            )
        if text != text.rstrip() and not self._run(messages, variables).startswith(begin):
            return begin.rstrip()  # the template strips the end of messages
        return begin

    def _run(self, messages: list[Message], variables: dict[str, Any]) -> str:
        tools = variables["tools"]
        template = self._template if tools is None else self._tool_template
        bounds = _Bounds(self._slack + _OUTPUT_PER_INPUT * _input_size(messages, tools))
        try:
            parts = template.generate({**variables, "messages": messages, _TICK: bounds.tick})
            return "".join(map(bounds.counted, parts))
        except _OutOfBoundsError as error:
            raise InvalidRequestError(f"The chat template {error} for this chat.") from None
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"The chat template refuses this chat: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise InvalidRequestError(f"The chat template fails on this chat: {error}") from None
        except (RecursionError, MemoryError):
            raise InvalidRequestError("The chat template runs out of memory.") from None


class _Bounds:
    """The clock and the output of one rendering."""

    def __init__(self, max_size: int) -> None:
        self._deadline = time.monotonic() + MAX_RENDER_SECONDS
        self._left = max_size

    def tick(self) -> None:
        if time.monotonic() > self._deadline:
            raise _OutOfBoundsError("takes too long")

    def counted(self, part: str) -> str:
        self._left -= len(part)
        if self._left < 0:
            raise _OutOfBoundsError("writes too much")
        self.tick()
        return part


class _OutOfBoundsError(Exception):
    pass


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the base class's way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox: bounded repetition, and a look at the clock in each loop and macro."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        for name in _PADDING_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        self.filters["indent"] = _indent
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _PADDING_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("str.format is not allowed")
        return None

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**":
            excessive = abs(left) > _MAX_REPEATED or abs(right) > _MAX_POWER
        elif operator == "%":
            excessive = isinstance(left, str) and _WIDE_FORMAT.search(left) is not None
        else:
            excessive = any(
                isinstance(sequence, str | list | tuple) and len(sequence) * count > _MAX_REPEATED
                for sequence, count in ((left, right), (right, left))
            )
        if excessive:
            raise _OutOfBoundsError("writes too much")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        blocks: list[nodes.For | nodes.Macro] = [
            *template.find_all(nodes.For),
            *template.find_all(nodes.Macro),
        ]
        for block in blocks:
            tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(tick).set_lineno(block.lineno))
        return template


def _compile(environment: jinja2.Environment, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise UnsupportedModelError(f"The chat template is not valid: {error}") from None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes <, > and &, which are plain text in a prompt."""
    if indent is not None and indent > _MAX_INDENT:
        raise _OutOfBoundsError("writes too much")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _indent(
    text: str,
    width: int | str = 4,
    first: bool = False,
    blank: bool = False,
) -> str:
    if isinstance(width, int) and width > _MAX_INDENT:
        raise _OutOfBoundsError("writes too much")
    return jinja2.filters.do_indent(text, width, first, blank)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)  # noqa: DTZ005 - a template's date is the local one


def _joined(parts: list[Any]) -> str:
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _parsed_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI writes a call's arguments as JSON text, templates expect the object."""
    parsed = dict(call)
    function = parsed.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return parsed
        parsed["function"] = {**function, "arguments": arguments}
    return parsed


def _final_text(message: Message) -> str:
    content = message["content"]
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part.get("text"), str)]
        content = texts[-1] if texts else ""
    if not content.strip():
        raise InvalidRequestError(
            "The final message has no text to continue.", param="continue_final_message"
        )
    return str(content)


def _with_final_text(message: Message, text: str) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    parts = list(content)
    last = max(i for i, part in enumerate(parts) if isinstance(part.get("text"), str))
    parts[last] = {**parts[last], "text": text}
    return {**message, "content": parts}


def _input_size(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> int:
    """Characters of the chat as JSON, near enough."""
    return sum(_text_size(value) for value in (messages, tools))


def _text_size(value: Any) -> int:
    size = 0
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.keys()
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
        size += len(each) + 4 if isinstance(each, str) else 8
    return size


def _loops_over_content(template: nodes.Template) -> bool:
    """Whether a template iterates over the content of a message, directly or by another name."""
    names = {
        node.target.name
        for node in template.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node)
    }
    return any(
        _is_content(loop.iter) or (isinstance(loop.iter, nodes.Name) and loop.iter.name in names)
        for loop in template.find_all(nodes.For)
    )


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Filter) and node.node is not None and _is_content(node.node)
