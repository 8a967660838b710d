"""A conversation to the text that the model continues."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.offload import offload
from octavo.server.schemas.decode import decode_free_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.server.schemas.chat import ChatMessage, ChatRequest, ToolDefinition
    from octavo.server.schemas.tokens import TokenizeRequest
    from octavo.server.served_model import ServedModel

# A template runs at about 10 MB/s: below this a hand-over costs more than it frees.
_SHORT_CONVERSATION = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template sees.

    Attributes:
        messages: The conversation so far.
        add_generation_prompt: End with the beginning of the model's turn.
        continue_final_message: Leave the last message open.
        kwargs: Further variables, scalars by name.
    """

    messages: Sequence[dict[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


def tools_of(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the model is told of, as templates expect them.

    Raises:
        InvalidRequestError: The parameters of one are no JSON schema, too large or too deep.
    """
    if request.tool_choice == "none":
        return []
    return [_tool(each, f"tools[{i}]") for i, each in enumerate(request.tools or ())]


def conversation_of(request: ChatRequest | TokenizeRequest) -> Conversation:
    """The conversation of a request.

    Raises:
        InvalidRequestError: A part of a message is not text, or the kwargs are not scalars.
    """
    return Conversation(
        messages=[_message(each, i) for i, each in enumerate(request.messages or ())],
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        kwargs=_template_variables(request),
    )


def render(
    conversation: Conversation,
    model: ServedModel,
    tools: Sequence[dict[str, Any]] | None = None,
) -> str:
    """The text that the model is to continue.

    Raises:
        InvalidRequestError: The model has no template, or the template refuses the conversation.
    """
    template = model.chat_template
    if template is None:
        raise InvalidRequestError(
            "This model has no chat template: use /v1/completions, or start the server with "
            "--chat-template.",
            param="messages",
        )
    size = sum(_size(each["content"]) for each in conversation.messages)
    call = offload if size > _SHORT_CONVERSATION else _call
    text: str = call(
        template.render,
        conversation.messages,
        tools=tools,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        template_kwargs=conversation.kwargs,
    )
    return text


def _message(message: ChatMessage, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    role = "system" if message.role == "developer" else message.role
    content: Any = message.content
    if isinstance(content, list):
        texts = message.texts(where)
        content = [{"type": "text", "text": text} for text in texts]
    shown: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        shown["name"] = message.name
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        shown["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        shown["reasoning_content"] = reasoning
    return shown


def _tool(tool: ToolDefinition, where: str) -> dict[str, Any]:
    function = tool.function
    param = f"{where}.function.parameters"
    parameters = decode_free_form(function.parameters, param)
    if not isinstance(parameters, dict | None):
        raise InvalidRequestError(f"{param}: expected object.", param=param)
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    shown["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


def _size(content: Any) -> int:
    if isinstance(content, list):
        return sum(len(part["text"]) for part in content)
    return len(content or "")


def _template_variables(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    given = _template_kwargs(request.chat_template_kwargs)
    if request.reasoning_effort is None:
        return given
    return {"reasoning_effort": request.reasoning_effort, **given}


def _template_kwargs(raw: msgspec.Raw) -> dict[str, Any]:
    kwargs = decode_free_form(raw, "chat_template_kwargs")
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise InvalidRequestError(
            "chat_template_kwargs: expected object.", param="chat_template_kwargs"
        )
    for name, value in kwargs.items():
        if not isinstance(value, str | int | float | bool | None):
            param = f"chat_template_kwargs.{name}"
            raise InvalidRequestError(
                "chat_template_kwargs: values must be strings, numbers or booleans.", param=param
            )
    return kwargs


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
