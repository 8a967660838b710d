"""The input of a response as the conversation that a chat has."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.schemas.chat import (
    ChatMessage,
    ChatRequest,
    ContentPart,
    FunctionCall,
    FunctionDefinition,
    NamedToolChoice,
    ToolCall,
    ToolChoiceFunction,
    ToolDefinition,
)
from octavo.server.schemas.responses import NamedTool
from octavo.server.schemas.sampling import JsonSchema, ResponseFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.server.schemas.responses import (
        InputItem,
        InputPart,
        ResponseRequest,
        ResponseTool,
    )

# The chat's names of fields to those of a response.
PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}

_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def chat_request(request: ResponseRequest, earlier: Sequence[ChatMessage]) -> ChatRequest:
    """The chat that answers a request.

    Args:
        request: The request.
        earlier: The conversation that its input continues.

    Raises:
        InvalidRequestError: An item or a tool is of a kind that is not supported.
    """
    messages = [*earlier, *input_messages(request.input)]
    if request.instructions is not None:
        messages.insert(0, ChatMessage(role="system", content=request.instructions))
    choice = request.tool_choice
    wants_logprobs = "message.output_text.logprobs" in (request.include or ())
    return ChatRequest(
        model=request.model,
        messages=messages,
        stream=request.stream,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        logprobs=wants_logprobs,
        top_logprobs=request.top_logprobs if wants_logprobs else None,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())],
        tool_choice=NamedToolChoice(function=ToolChoiceFunction(name=choice.name))
        if isinstance(choice, NamedTool)
        else choice,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        truncate_prompt_tokens=-1 if request.truncation == "auto" else None,
        response_format=_response_format(request),
        priority=request.priority,
        cache_salt=request.cache_salt,
    )


def input_messages(given: str | Sequence[InputItem]) -> list[ChatMessage]:
    """The messages of an input. Calls and reasoning join the assistant's message beside them.

    Raises:
        InvalidRequestError: An item is of a kind that is not supported.
    """
    if isinstance(given, str):
        return [ChatMessage(role="user", content=given)]
    messages: list[ChatMessage] = []
    for index, item in enumerate(given):
        message = _message(item, f"input[{index}]")
        if not (messages and _joins(messages[-1], message)):
            messages.append(message)
    return messages


def shown_input(given: str | Sequence[InputItem]) -> list[dict[str, Any]]:
    """The items of an input as they are told to whoever asks for them."""
    if isinstance(given, str):
        part = {"type": "input_text", "text": given}
        return [
            {
                "id": f"msg_{uuid.uuid4().hex}",
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": [part],
            }
        ]
    return [_shown_item(item) for item in given]


def _shown_item(item: InputItem) -> dict[str, Any]:
    shown = {k: v for k, v in msgspec.to_builtins(item).items() if v is not None}
    if item.type == "message" and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": item.content}]
    prefix = _ID_PREFIXES.get(item.type, "item")
    return {"id": f"{prefix}_{uuid.uuid4().hex}", "status": "completed", **shown}


def _message(item: InputItem, where: str) -> ChatMessage:
    if item.type == "message":
        if item.role is None:
            raise _missing(f"{where}.role")
        return ChatMessage(role=item.role, content=_content(item.content))
    if item.type == "function_call":
        if item.name is None or item.call_id is None:
            raise _missing(f"{where}.{'name' if item.name is None else 'call_id'}")
        function = FunctionCall(name=item.name, arguments=item.arguments or "{}")
        call = ToolCall(id=item.call_id, function=function)
        return ChatMessage(role="assistant", tool_calls=[call])
    if item.type == "function_call_output":
        if item.call_id is None:
            raise _missing(f"{where}.call_id")
        return ChatMessage(role="tool", tool_call_id=item.call_id, content=_content(item.output))
    if item.type == "reasoning":
        parts = item.content if isinstance(item.content, list) else item.summary
        text = "\n".join(part.text or "" for part in parts or ())
        return ChatMessage(role="assistant", reasoning_content=text)
    raise InvalidRequestError(
        f"{where}.type: {item.type[:64]!r} is not supported.", param=f"{where}.type"
    )


def _joins(message: ChatMessage, later: ChatMessage) -> bool:
    """Whether a later part belongs to the assistant's message, which then has it."""
    if message.role != "assistant" or later.role != "assistant":
        return False
    if later.tool_calls:
        message.tool_calls = [*(message.tool_calls or ()), *later.tool_calls]
        return True
    if message.content is None and not message.tool_calls and later.content is not None:
        message.content = later.content
        return True
    return False


def _content(content: str | list[InputPart] | None) -> str | list[ContentPart] | None:
    if not isinstance(content, list):
        return content
    return [ContentPart(type=part.type, text=part.text) for part in content]


def _tool(tool: ResponseTool, where: str) -> ToolDefinition:
    if tool.type != "function":
        raise InvalidRequestError(
            f"{where}.type: {tool.type[:64]!r} is not supported, only functions are.",
            param=f"{where}.type",
        )
    if tool.name is None:
        raise _missing(f"{where}.name")
    return ToolDefinition(
        function=FunctionDefinition(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            strict=tool.strict,
        )
    )


def _response_format(request: ResponseRequest) -> ResponseFormat | None:
    wanted = request.text.format if request.text else None
    if wanted is None:
        return None
    schema = JsonSchema(name=wanted.name, schema=wanted.schema, strict=wanted.strict)
    return ResponseFormat(type=wanted.type, json_schema=schema)


def _missing(where: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where}: is required.", param=where)


def shown_tools(request: ResponseRequest) -> list[dict[str, Any]]:
    """The tools of a request as its answer repeats them."""
    return [
        {
            "type": tool.type,
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters if bytes(tool.parameters) else None,
            "strict": bool(tool.strict),
        }
        for tool in request.tools or ()
    ]
