"""Bodies of /tokenize, /detokenize and /tokenizer_info."""

from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.server.schemas.chat import ChatMessage
from octavo.server.schemas.sampling import TokenId


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A prompt, or the messages of a chat, to tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    reasoning_effort: str | None = None
    return_token_strs: bool | None = None


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Tokens to text."""

    model: str | None = None
    tokens: list[TokenId]


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    """The text of tokens, special ones included."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """Facts about the tokenizer."""

    tokenizer_class: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None
