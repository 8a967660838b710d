"""Bodies of /v1/embeddings."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.server.schemas.sampling import MAX_INT32


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """Turn texts into vectors. Null means the default; unknown fields are ignored."""

    input: Annotated[
        str | list[str | int | list[int]],
        Meta(description="A string, strings, token ids, or lists of token ids."),
    ]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: (
        Annotated[int, Meta(ge=1, le=MAX_INT32, description="The model's own; no other.")] | None
    ) = None
    pooling: (
        Annotated[
            Literal["last", "mean"],
            Meta(description="Of the last token (default), or the mean over all tokens."),
        ]
        | None
    ) = None
    normalize: Annotated[bool, Meta(description="To length 1; the default.")] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: (
        Annotated[int, Meta(ge=-1, description="Keep the last k; -1: what fits.")] | None
    ) = None
    priority: Annotated[int, Meta(ge=-(2**31), le=MAX_INT32)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    user: str | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """The vector of one input: numbers, or little-endian float32 in base64."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    """The answer of /v1/embeddings."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
