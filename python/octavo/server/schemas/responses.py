"""Bodies of /v1/responses."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.server.schemas.chat import FunctionName
from octavo.server.schemas.sampling import MAX_INT32, MAX_LOGPROBS
from octavo.server.schemas.sizes import MAX_TOOLS

MAX_METADATA = 16


class InputPart(msgspec.Struct, kw_only=True):
    """A part of a message; only text is supported."""

    type: str
    text: str | None = None


class InputItem(msgspec.Struct, kw_only=True):
    """A message, a call of a function, its result, or earlier reasoning; `type` says which."""

    type: str = "message"
    id: str | None = None
    role: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    content: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class ResponseTool(msgspec.Struct, kw_only=True):
    """A function that the model may call."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class NamedTool(msgspec.Struct, kw_only=True):
    """The one function that the model has to call."""

    type: Literal["function"] = "function"
    name: FunctionName


class TextFormat(msgspec.Struct, kw_only=True):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True):
    """How the text is to be."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True):
    """How much the model is to think."""

    effort: Annotated[str, Meta(max_length=32)] | None = None
    summary: str | None = None


class ResponseRequest(msgspec.Struct, kw_only=True):
    """Answer an input. Null means the default; unknown fields are ignored."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Annotated[str, Meta(max_length=128)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=MAX_METADATA)] | None = None
    user: str | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=MAX_INT32)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class OutputTopLogprob(msgspec.Struct, kw_only=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class OutputLogprob(msgspec.Struct, kw_only=True):
    """The chosen token at a position, and the most likely ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[OutputTopLogprob] = []


class OutputPart(msgspec.Struct, kw_only=True):
    """Text of a message or of reasoning."""

    type: str
    text: str = ""
    annotations: list[Any] | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET


class OutputItem(msgspec.Struct, kw_only=True):
    """A message, a call of a function, or reasoning; `type` says which."""

    id: str
    type: str
    status: str = "in_progress"
    role: str | UnsetType = UNSET
    content: list[OutputPart] | UnsetType = UNSET
    summary: list[OutputPart] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class InputTokensDetails(msgspec.Struct, kw_only=True):
    """Where the input's tokens came from."""

    cached_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    """What the output's tokens were for."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, kw_only=True):
    """Why an answer is cut off."""

    reason: str


class ResponseError(msgspec.Struct, kw_only=True):
    """Why there is no answer."""

    code: str
    message: str


class Response(msgspec.Struct, kw_only=True):
    """The answer of /v1/responses."""

    id: str
    object: str = "response"
    created_at: int
    status: str = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: ReasoningOptions
    store: bool
    temperature: float | None = None
    text: dict[str, Any]
    tool_choice: str | NamedTool = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}
