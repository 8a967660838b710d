"""What a request asks the model to continue, as token ids that fit the context."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.offload import offload
from octavo.server.schemas.sampling import check_token_ids
from octavo.server.schemas.sizes import MAX_PROMPTS, prompt_too_long

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.server.served_model import Tokenizer

# Encoding runs at about a character in 0.5 µs: below this a hand-over costs more than it frees.
_SHORT_TEXT = 1000

# A text of more characters a token than this is rare; it costs encoding a part of it twice.
_CHARACTERS_PER_TOKEN = 8

# Tokens by which the beginning of a text can come out longer than it does inside the whole.
_CUT_SLACK = 64

PromptInput = str | list[int]


class Prompt(msgspec.Struct, frozen=True):
    """One prompt, ready for the engine.

    Attributes:
        token_ids: Its tokens; at least one.
        text: Its text where the request gave text, None where it gave tokens.
    """

    token_ids: list[int]
    text: str | None


class PromptLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt has to fit.

    Attributes:
        param: The request field that the prompt comes from.
        vocab_size: Width of the model's logits.
        max_model_len: Tokens of prompt and output together.
        max_tokens: Output tokens asked for; None leaves it to the room there is.
        add_special_tokens: Let the tokenizer add what it puts around a text.
        truncate: Keep this many of the last tokens; -1 as many as fit; None all.
    """

    param: str
    vocab_size: int
    max_model_len: int
    max_tokens: int | None
    add_special_tokens: bool
    truncate: int | None = None


def split_prompts(prompt: str | Sequence[str | int | list[int]]) -> list[PromptInput]:
    """The prompts of a completion request, one by one.

    Raises:
        InvalidRequestError: None, too many, or of different kinds.
    """
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if len(kinds) != 1:
        what = "of one kind: strings, token ids, or lists of token ids" if kinds else "not empty"
        raise InvalidRequestError(f"prompt: must be {what}.", param="prompt")
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt: at most {MAX_PROMPTS} prompts a request, got {len(prompt)}.", param="prompt"
        )
    return [each for each in prompt if not isinstance(each, int)]


def prepare_prompts(
    inputs: Sequence[PromptInput], tokenizer: Tokenizer, limits: PromptLimits
) -> list[Prompt]:
    """Encode and check prompts.

    Raises:
        InvalidRequestError: A prompt is empty, too long, or has a token id out of range.
    """
    for each in inputs:
        if not isinstance(each, str):
            check_token_ids(each, limits.vocab_size, limits.param)
    length = sum(len(each) for each in inputs if isinstance(each, str))
    if length < _SHORT_TEXT:
        encoded = _encode_all(inputs, tokenizer, limits)
    else:
        encoded = offload(_encode_all, inputs, tokenizer, limits)
    texts = (each if isinstance(each, str) else None for each in inputs)
    return [
        Prompt(_fit(token_ids, limits), text)
        for token_ids, text in zip(encoded, texts, strict=True)
    ]


def max_output_tokens(prompt: Prompt, limits: PromptLimits, default: int | None) -> int:
    """How long the output may get: as asked, else the default, else what fits."""
    if limits.max_tokens is not None:
        return limits.max_tokens
    room = limits.max_model_len - len(prompt.token_ids)
    return room if default is None else min(default, room)


def encode_bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Token sequences of words that must not appear: at the start of a text and after a space."""
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip() or word
        for text in (bare, f" {bare}"):
            token_ids = tokenizer.encode(text, add_special_tokens=False)
            if token_ids:
                sequences[tuple(token_ids)] = None
    return tuple(sequences)


def _encode_all(
    inputs: Sequence[PromptInput], tokenizer: Tokenizer, limits: PromptLimits
) -> list[list[int]]:
    return [_encode(each, tokenizer, limits) if isinstance(each, str) else each for each in inputs]


def _encode(text: str, tokenizer: Tokenizer, limits: PromptLimits) -> list[int]:
    """Encode a text; one far too long for the context is refused for a part of the cost."""
    special = limits.add_special_tokens
    size = limits.max_model_len * _CHARACTERS_PER_TOKEN
    while limits.truncate is None and size < len(text):
        least = len(tokenizer.encode(text[:size], add_special_tokens=special))
        if least > limits.max_model_len + _CUT_SLACK:
            raise _too_long(least, limits)
        size *= 4
    return tokenizer.encode(text, add_special_tokens=special)


def _fit(token_ids: list[int], limits: PromptLimits) -> list[int]:
    output = 1 if limits.max_tokens is None else limits.max_tokens
    if limits.truncate is not None:
        keep = limits.truncate if limits.truncate > 0 else max(1, limits.max_model_len - output)
        token_ids = token_ids[-keep:]
    if not token_ids:
        raise InvalidRequestError(f"{limits.param}: is empty.", param=limits.param)
    if len(token_ids) + output > limits.max_model_len:
        raise _too_long(len(token_ids), limits)
    return token_ids


def _too_long(num_tokens: int, limits: PromptLimits) -> InvalidRequestError:
    if num_tokens >= limits.max_model_len:
        return prompt_too_long(num_tokens, limits.max_model_len, limits.param)
    error = InvalidRequestError(
        f"This model's context is {limits.max_model_len} tokens, but the prompt has {num_tokens} "
        f"and max_tokens is {limits.max_tokens}.",
        param="max_tokens",
    )
    error.code = "context_length_exceeded"
    return error
