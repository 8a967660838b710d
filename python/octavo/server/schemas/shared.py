"""Pieces that several routes answer with."""

import msgspec


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """What the answer's tokens were for."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


class PromptLogprob(msgspec.Struct, kw_only=True):
    """One candidate for one token of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


# For each token of the prompt, candidates by token id; null for the first token.
PromptLogprobs = list[dict[int, PromptLogprob] | None]


class ErrorDetail(msgspec.Struct, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """The body of every error."""

    error: ErrorDetail


class ModelCard(msgspec.Struct, kw_only=True):
    """A model that is served here."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(msgspec.Struct, kw_only=True):
    """The models that are served here."""

    object: str = "list"
    data: list[ModelCard]
