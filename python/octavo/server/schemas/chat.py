"""Bodies of /v1/chat/completions."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.errors import InvalidRequestError
from octavo.server.schemas.sampling import MAX_INT32, NumLogprobs, SamplingFields
from octavo.server.schemas.shared import PromptLogprobs, Usage
from octavo.server.schemas.sizes import MAX_TOOLS

FunctionName = Annotated[str, Meta(min_length=1, max_length=256)]


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message; only text is supported."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """A call that the model makes: arguments is JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, kw_only=True):
    """A tool call in a message."""

    id: str | None = None
    type: str = "function"
    function: FunctionCall


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class ToolDefinition(msgspec.Struct, kw_only=True):
    """A tool that the model may use; only functions are supported."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class ToolChoiceFunction(msgspec.Struct, kw_only=True):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(msgspec.Struct, kw_only=True):
    """The one function that the model has to call."""

    type: Literal["function"] = "function"
    function: ToolChoiceFunction


class ChatMessage(msgspec.Struct, kw_only=True):
    """A message of the conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    def texts(self, where: str) -> list[str]:
        """The texts of the content.

        Raises:
            InvalidRequestError: A part is not text.
        """
        if not isinstance(self.content, list):
            return [self.content] if self.content else []
        return [_part_text(p, f"{where}.content[{i}]") for i, p in enumerate(self.content)]


class ChatRequest(SamplingFields, kw_only=True):
    """Answer a conversation."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None

    def check(self) -> None:
        """See SamplingFields."""
        super().check()
        if self.max_tokens == 0:
            raise InvalidRequestError("max_tokens: must be at least 1.", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs: needs logprobs to be true.", param="top_logprobs"
            )
        if self.chat_template is not None:
            raise InvalidRequestError(
                "chat_template: a template in a request is not accepted.", param="chat_template"
            )
        if self.continue_final_message and self.add_generation_prompt is not False:
            raise InvalidRequestError(
                "continue_final_message: needs add_generation_prompt to be false.",
                param="continue_final_message",
            )
        if set(self.modalities or ()) - {"text"}:
            raise InvalidRequestError("modalities: only text is supported.", param="modalities")
        self._check_tool_choice()

    def _check_tool_choice(self) -> None:
        choice = self.tool_choice
        if choice in (None, "none", "auto"):
            return
        names = [tool.function.name for tool in self.tools or ()]
        if not names:
            raise InvalidRequestError("tool_choice: needs tools.", param="tool_choice")
        if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
            raise InvalidRequestError(
                "tool_choice: names a function that tools do not have.", param="tool_choice"
            )

    @property
    def forces_tool_call(self) -> bool:
        """The model has to call a function."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedToolChoice)

    @property
    def requested_max_tokens(self) -> int | None:
        """max_completion_tokens wins over max_tokens."""
        return self.max_completion_tokens or self.max_tokens


class TopLogprob(msgspec.Struct, kw_only=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, kw_only=True):
    """The chosen token at a position, and the most likely ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """One entry a token of the answer."""

    content: list[TokenLogprob]


class AnswerMessage(msgspec.Struct, kw_only=True):
    """The model's answer."""

    role: str
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatResponse(msgspec.Struct, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionCallDelta(msgspec.Struct, kw_only=True):
    """More of a call: its name in the first delta, then more and more arguments."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """What a chunk adds to a tool call: id and type in the first delta only."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCallDelta


class Delta(msgspec.Struct, kw_only=True):
    """What a chunk adds to the answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """A chunk of a chat stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


def _part_text(part: ContentPart, where: str) -> str:
    if part.type not in ("text", "input_text", "output_text"):
        raise InvalidRequestError(
            f"{where}.type: {part.type!r} is not supported, only text is.", param=f"{where}.type"
        )
    if part.text is None:
        raise InvalidRequestError(f"{where}.text: is required.", param=f"{where}.text")
    return part.text
