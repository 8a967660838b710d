"""Bodies of /v1/completions."""

from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.errors import InvalidRequestError
from octavo.server.schemas.sampling import NumLogprobs, SamplingFields
from octavo.server.schemas.shared import PromptLogprobs, Usage

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(SamplingFields, kw_only=True):
    """Continue one or several prompts."""

    prompt: Annotated[
        str | list[str | int | list[int]],
        Meta(description="A string, strings, token ids, or lists of token ids."),
    ]
    logprobs: NumLogprobs | None = None
    suffix: str | None = None

    def check(self) -> None:
        """See SamplingFields."""
        super().check()
        if self.suffix:
            raise InvalidRequestError("suffix: is not supported.", param="suffix")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens: must be at least 1.", param="max_tokens")


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Columns with one entry a token. The first token of an echoed prompt has no logprob."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One continuation, or its next piece in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionResponse(msgspec.Struct, kw_only=True):
    """The answer of /v1/completions, and each chunk of its stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
