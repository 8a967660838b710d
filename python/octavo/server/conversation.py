"""A conversation to the text that the model continues."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.server.offload import offload
from octavo.server.schemas.decode import decode_free_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

    from octavo.server.schemas.chat import ChatMessage, ChatRequest
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


def conversation_of(request: ChatRequest | TokenizeRequest) -> Conversation:
    """The conversation of a request.

    Raises:
        InvalidRequestError: A part of a message is not text, or the kwargs are not scalars.
    """
    return Conversation(
        messages=[_message(each, i) for i, each in enumerate(request.messages or ())],
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        kwargs=_template_kwargs(request.chat_template_kwargs),
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
    return shown


def _size(content: Any) -> int:
    if isinstance(content, list):
        return sum(len(part["text"]) for part in content)
    return len(content or "")


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
