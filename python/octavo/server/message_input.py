"""A conversation of the messages API as the conversation that a chat has."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.server.schemas.messages import (
        CountTokensRequest,
        InputBlock,
        InputMessage,
        MessagesRequest,
        MessageToolChoice,
    )

# The chat's names of fields to those of a message.
PARAMS = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"}


def chat_request(request: MessagesRequest) -> ChatRequest:
    """The chat that answers a request.

    Raises:
        InvalidRequestError: A block or a tool is of a kind that is not supported.
    """
    chat = conversation_request(request)
    chat.stream = request.stream
    chat.max_tokens = request.max_tokens
    chat.temperature = request.temperature
    chat.top_p = request.top_p
    chat.top_k = request.top_k
    chat.stop = list(request.stop_sequences or ())
    return chat


def conversation_request(request: CountTokensRequest) -> ChatRequest:
    """The part of the chat that its prompt is made of.

    Raises:
        InvalidRequestError: A block or a tool is of a kind that is not supported.
    """
    messages = [
        message
        for i, each in enumerate(request.messages)
        for message in _messages(each, f"messages[{i}]")
    ]
    if request.system:
        blocks = request.system
        content = blocks if isinstance(blocks, str) else _text_parts(blocks, "system")
        messages.insert(0, ChatMessage(role="system", content=content))
    chat = ChatRequest(messages=messages, model=request.model)
    chat.tools = [
        ToolDefinition(
            function=FunctionDefinition(
                name=tool.name, description=tool.description, parameters=tool.input_schema
            )
        )
        for i, tool in enumerate(request.tools or ())
        if _is_custom(tool.type, f"tools[{i}].type")
    ]
    if request.tool_choice is not None:
        _choose_tool(chat, request.tool_choice)
    if request.thinking is not None:
        thinks = request.thinking.type != "disabled"
        variables = msgspec.json.encode({"enable_thinking": thinks})
        chat.chat_template_kwargs = msgspec.Raw(variables)
    return chat


def _choose_tool(chat: ChatRequest, choice: MessageToolChoice) -> None:
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidRequestError("tool_choice.name: is required.", param="tool_choice.name")
        chat.tool_choice = NamedToolChoice(function=ToolChoiceFunction(name=choice.name))
    elif choice.type == "any":
        chat.tool_choice = "required"
    else:
        chat.tool_choice = "none" if choice.type == "none" else "auto"
    if choice.disable_parallel_tool_use:
        chat.parallel_tool_calls = False


def _messages(message: InputMessage, where: str) -> Iterator[ChatMessage]:
    """A message as one or several: results of tools have messages of their own, and come first."""
    if isinstance(message.content, str):
        yield ChatMessage(role=message.role, content=message.content)
        return
    chat = ChatMessage(role=message.role)
    texts: list[ContentPart] = []
    for index, block in enumerate(message.content):
        place = f"{where}.content[{index}]"
        if block.type == "tool_result":
            yield _tool_result(block, place)
        elif block.type == "tool_use":
            chat.tool_calls = [*(chat.tool_calls or ()), _tool_use(block, place)]
        elif block.type == "thinking":
            chat.reasoning_content = (chat.reasoning_content or "") + (block.thinking or "")
        elif block.type != "redacted_thinking":
            texts += _text_parts([block], where, index)
    chat.content = texts or None
    if texts or chat.tool_calls or chat.reasoning_content:
        yield chat


def _tool_result(block: InputBlock, where: str) -> ChatMessage:
    if block.tool_use_id is None:
        raise InvalidRequestError(f"{where}.tool_use_id: is required.", param=where)
    content = block.content
    shown = _text_parts(content, where) if isinstance(content, list) else content or ""
    return ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=shown)


def _tool_use(block: InputBlock, where: str) -> ToolCall:
    if block.name is None or block.id is None:
        raise InvalidRequestError(f"{where}: needs id and name.", param=where)
    arguments = bytes(block.input).decode(errors="replace") or "{}"
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))


def _text_parts(blocks: list[InputBlock], where: str, first: int = 0) -> list[ContentPart]:
    for index, block in enumerate(blocks, first):
        if block.type != "text" or block.text is None:
            param = f"{where}.content[{index}].type"
            raise InvalidRequestError(
                f"{param}: {block.type[:64]!r} is not supported here.", param=param
            )
    return [ContentPart(type="text", text=block.text) for block in blocks]


def _is_custom(kind: str | None, where: str) -> bool:
    if kind not in (None, "custom"):
        raise InvalidRequestError(
            f"{where}: only custom tools are supported, not {kind[:64]!r}.", param=where
        )
    return True
