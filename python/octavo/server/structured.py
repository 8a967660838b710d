"""What a request says about the form of its answer, as a grammar that the engine keeps to.

An answer may have three parts: reasoning, which is free; calls of tools, in the format that the
model's tool parser reads; and the text itself. A grammar is compiled here once before it is sent
on, so that what is wrong with it is told with status 400 and never reaches the engine.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import grammar
from octavo.errors import InvalidRequestError
from octavo.server.offload import offload
from octavo.server.parsers.reasoning import CLOSE, OPEN
from octavo.server.schemas.chat import NamedToolChoice
from octavo.server.schemas.decode import decode_free_form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from octavo.server.schemas.chat import ChatRequest
    from octavo.server.schemas.sampling import SamplingFields, StructuredOutputs
    from octavo.server.served_model import Tokenizer

MAX_CHOICES = 4096
_MAX_CHECKED = 1024

_ANSWER = "answer"
_GAP = "GAP: /[ \\n]{1,8}/"  # between reasoning and answer


def answer_grammar(fields: SamplingFields) -> tuple[str, str] | None:
    """The grammar of the answer's text, and the field that asks for it.

    Raises:
        InvalidRequestError: A field is too large or malformed, or two contradict each other.
    """
    wanted = fields.structured_outputs
    form = fields.response_format
    has_form = form is not None and form.type != "text"
    if wanted is not None and wanted.kinds:
        if has_form:
            raise InvalidRequestError(
                "structured_outputs: cannot be combined with response_format.",
                param="structured_outputs",
            )
        return _named(_of_structured_outputs, wanted)
    if form is None or not has_form:
        return None
    if form.type == "json_object":
        return grammar.json_object(), "response_format"
    param = "response_format.json_schema"
    if form.json_schema is None or not bytes(form.json_schema.schema):
        raise InvalidRequestError(f"{param}: needs a schema.", param=param)
    param += ".schema"
    return _json_schema(form.json_schema.schema, param), param


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a tool parser's calls are written, in Lark's notation.

    Attributes:
        opening: Before the first call.
        before: Before the function's name.
        between: Between name and arguments.
        after: Behind the arguments.
        separator: Between two calls.
        closing: Behind the last call.
    """

    opening: Sequence[str] = ()
    before: Sequence[str]
    between: Sequence[str]
    after: Sequence[str] = ()
    separator: Sequence[str] = ()
    closing: Sequence[str] = ()


_HERMES = ToolFormat(
    before=["<tool_call>", '\n{"name": "'],
    between=['", "arguments": '],
    after=["}\n", "</tool_call>"],
    separator=["\n"],
)
_FORMATS = {
    "hermes": _HERMES,
    "qwen": _HERMES,
    "llama3_json": ToolFormat(
        before=['{"name": "'], between=['", "parameters": '], after=["}"], separator=["; "]
    ),
    "mistral": ToolFormat(
        opening=["[TOOL_CALLS]", "["],
        before=['{"name": "'],
        between=['", "arguments": '],
        after=["}"],
        separator=[", "],
        closing=["]"],
    ),
}
# Of Mistral's models whose vocabulary has the mark of arguments.
_MISTRAL_ARGS = ToolFormat(before=["[TOOL_CALLS]"], between=["[ARGS]"])


def chat_grammar(
    request: ChatRequest,
    tools: Sequence[Mapping[str, Any]],
    tool_parser: str | None,
    tokenizer: Tokenizer,
    *,
    reasons: bool | None,
) -> str | None:
    """The grammar of a whole answer; None leaves the model free.

    Args:
        request: The request.
        tools: As the template is told of them.
        tool_parser: Which reads the calls.
        tokenizer: The model's.
        reasons: The answer begins inside reasoning; False: it may begin with reasoning; None: it
            has none.

    Raises:
        InvalidRequestError: Naming the field that is malformed, too large or too complex.
    """
    answer = answer_grammar(request)
    is_forced = request.forces_tool_call
    if answer is None and not is_forced:
        return None
    rules = _Rules(tokenizer)
    branches = []
    param = "tool_choice"
    if tools and tool_parser is not None:
        branches.append(rules.calls(_format(tool_parser, tokenizer), request, tools))
    if answer is not None and not is_forced:
        text, param = answer
        branches.append(rules.add_part(_ANSWER, text))
    rules.start(branches, reasons=reasons)
    return checked(rules.text(), param)


def _format(tool_parser: str, tokenizer: Tokenizer) -> ToolFormat:
    if tool_parser == "mistral" and tokenizer.token_to_id("[ARGS]") is not None:
        return _MISTRAL_ARGS
    return _FORMATS[tool_parser]


class _Rules:
    """Collects the rules of a grammar."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.token_bytes.special_ids
        self._lines: list[str] = []
        self._parts: dict[str, str] = {}

    def add_part(self, name: str, text: str) -> str:
        """Take in another grammar; returns how rules name it."""
        self._parts[name] = text
        return f"@{name}"

    def calls(
        self, format_: ToolFormat, request: ChatRequest, tools: Sequence[Mapping[str, Any]]
    ) -> str:
        """Add the calls of tools; returns their rule's name."""
        names = []
        choice = request.tool_choice
        for index, tool in enumerate(tools):
            function = tool["function"]
            if isinstance(choice, NamedToolChoice) and function["name"] != choice.function.name:
                continue
            definition = (request.tools or ())[index].function
            schema = {**function["parameters"]}
            arguments = grammar.json_schema(schema, is_lenient=not definition.strict)
            part = self.add_part(f"arguments{index}", arguments)
            quoted_name = msgspec.json.encode(function["name"]).decode()[1:-1]
            before = self._all([*format_.before, quoted_name])
            line = f"{before} {self._all(format_.between)} {part}"
            self._lines.append(f"call{index}: {line} {self._all(format_.after)}")
            names.append(f"call{index}")
        self._lines.append("call: " + " | ".join(names))
        several = not isinstance(choice, NamedToolChoice)
        more = ""
        if several and request.parallel_tool_calls is not False:
            more = f" ({self._all(format_.separator)} call)*"
        ends = self._all(format_.opening), self._all(format_.closing)
        self._lines.append(f"calls: {ends[0]} call{more} {ends[1]}")
        return "calls"

    def start(self, branches: Sequence[str], *, reasons: bool | None) -> None:
        """Add the first rule."""
        body = "(" + " | ".join(branches) + ")"
        if reasons is not None:
            thought = f"{self._thought()} GAP?"
            self._lines.append(_GAP)
            if not reasons:
                thought = f"({self._all([OPEN])} {thought})?"
            body = f"{thought} {body}"
        self._lines.insert(0, f"start: {body}")

    def text(self) -> str:
        """The grammar."""
        return grammar.compose("\n".join(self._lines), self._parts)

    def _thought(self) -> str:
        token_id = self._tokenizer.token_to_id(CLOSE)
        if token_id in self._special:
            self._lines.append(f"thought: /(?s:.*)/ <[{token_id}]>")
        else:
            self._lines.append("thought[lazy]: /(?s:.*)<\\/think>/")
        return "thought"

    def _all(self, texts: Sequence[str]) -> str:
        """Texts one behind the other; one that is a special token can only be that token."""
        shown = []
        for text in texts:
            token_id = self._tokenizer.token_to_id(text)
            is_special = token_id is not None and token_id in self._special
            shown.append(f"<[{token_id}]>" if is_special else grammar.quoted(text))
        return " ".join(shown)


_checked: OrderedDict[bytes, None] = OrderedDict()


def checked(text: str, param: str) -> str:
    """A grammar that has been compiled once, off the event loop.

    Raises:
        InvalidRequestError: Naming the field.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    if digest in _checked:
        return text
    try:
        offload(grammar.check, text)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{param}: {error.message}", param=param) from None
    _checked[digest] = None
    if len(_checked) > _MAX_CHECKED:
        _checked.popitem(last=False)
    return text


def _named(
    make: Callable[[StructuredOutputs, str, str], str], wanted: StructuredOutputs
) -> tuple[str, str]:
    if len(wanted.kinds) > 1:
        raise InvalidRequestError(
            f"structured_outputs: only one of {', '.join(wanted.kinds)} can be asked for.",
            param="structured_outputs",
        )
    (kind,) = wanted.kinds
    param = f"structured_outputs.{kind}"
    return make(wanted, kind, param), param


def _of_structured_outputs(wanted: StructuredOutputs, kind: str, param: str) -> str:
    if kind == "json":
        return _json_schema(wanted.json, param)
    if kind == "json_object":
        return grammar.json_object()
    if kind == "choice":
        texts = wanted.choice or []
        if len(texts) > MAX_CHOICES:
            raise InvalidRequestError(
                f"{param}: at most {MAX_CHOICES} choices, got {len(texts)}.", param=param
            )
        _check_size("".join(texts), param)
        return grammar.choice(texts)
    text = (wanted.regex if kind == "regex" else wanted.grammar) or ""
    _check_size(text, param)
    try:
        return grammar.regex(text) if kind == "regex" else grammar.grammar(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{param}: {error.message}", param=param) from None


def _json_schema(raw: msgspec.Raw, param: str) -> str:
    schema = decode_free_form(raw, param)
    if isinstance(schema, str):  # some clients send the schema as text
        schema = decode_free_form(msgspec.Raw(schema.encode()), param)
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(f"{param}: expected object.", param=param)
    return grammar.json_schema(schema)


def _check_size(text: str, param: str) -> None:
    size = len(text.encode())
    if size > grammar.MAX_BYTES:
        raise InvalidRequestError(
            f"{param}: must be at most {grammar.MAX_BYTES} bytes, got {size}.", param=param
        )
