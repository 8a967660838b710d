"""Bodies of /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.server.schemas.chat import FunctionName
from octavo.server.schemas.sampling import MAX_INT32, MAX_STOP_STRINGS, StopString
from octavo.server.schemas.sizes import MAX_TOOLS


class InputBlock(msgspec.Struct, kw_only=True):
    """Text, a use of a tool, its result, or earlier thinking; `type` says which."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    tool_use_id: str | None = None
    content: str | list["InputBlock"] | None = None
    is_error: bool | None = None


class InputMessage(msgspec.Struct, kw_only=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[InputBlock]


class MessageTool(msgspec.Struct, kw_only=True):
    """A tool that the model may use."""

    name: FunctionName
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class MessageToolChoice(msgspec.Struct, kw_only=True):
    """Whether the model has to use a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model is to think first."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """A conversation to count. Null means the default; unknown fields are ignored."""

    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    model: str | None = None
    system: str | list[InputBlock] | None = None
    tools: Annotated[list[MessageTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """Answer a conversation."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)]
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    metadata: dict[str, Any] | None = None


class OutputBlock(msgspec.Struct, kw_only=True):
    """Text, a use of a tool, or thinking; `type` says which."""

    type: str
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: msgspec.Raw | dict[str, Any] | UnsetType = UNSET


class MessageUsage(msgspec.Struct, kw_only=True):
    """Tokens of a message. Cached ones are not among input_tokens."""

    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0


class Message(msgspec.Struct, kw_only=True):
    """The answer of /v1/messages."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[OutputBlock] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct, kw_only=True):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class MessageErrorDetail(msgspec.Struct, kw_only=True):
    """What went wrong."""

    type: str
    message: str


class MessageError(msgspec.Struct, kw_only=True):
    """The body of an error."""

    type: Literal["error"] = "error"
    error: MessageErrorDetail
