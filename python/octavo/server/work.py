"""From a validated request to what the engine is asked to do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.server.prompts import (
    Prompt,
    PromptInput,
    PromptLimits,
    encode_bad_words,
    max_output_tokens,
    prepare_prompts,
)
from octavo.server.schemas.sampling import OutputLimits, to_sampling_params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.engine.client import ModelInfo
    from octavo.sampling_params import SamplingParams
    from octavo.server.schemas.sampling import SamplingFields
    from octavo.server.served_model import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a call asks of the engine.

    Attributes:
        prompts: Prompts and how each is continued; n is the same for all.
        priority: Lower runs first.
        cache_salt: Separates tenants in the prefix cache; 0 is the common tenant.
        adapter: The adapter's name; "" for the model itself.
    """

    prompts: Sequence[tuple[Prompt, SamplingParams]]
    priority: int = 0
    cache_salt: int = 0
    adapter: str = ""

    @property
    def sampling(self) -> SamplingParams:
        """Of the first prompt; only max_tokens can differ between prompts."""
        return self.prompts[0][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What differs between the routes that generate.

    Attributes:
        param: The request field that the prompt comes from.
        add_special_tokens: Unless the request says otherwise.
        max_tokens: What the request asks for.
        default_max_tokens: Where it asks for nothing; None fills the context.
        logprobs: Of how many tokens beside the chosen one; None for no logprobs.
        prompt_logprobs: The same for the prompt.
        shows_special_tokens: Whatever the request says; for parsers that look for them.
        grammar: What the output has to match.
        adapter: The adapter's name; "" for the model itself.
    """

    param: str
    add_special_tokens: bool
    max_tokens: int | None
    default_max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    shows_special_tokens: bool = False
    grammar: str | None = None
    adapter: str = ""


def plan(
    fields: SamplingFields,
    route: Route,
    inputs: Sequence[PromptInput],
    model: ServedModel,
    info: ModelInfo,
) -> Work:
    """Encode the prompts and settle the sampling.

    Raises:
        InvalidRequestError: Prompt or parameters do not fit the model.
    """
    fields.check_token_ids(info.vocab_size)
    special = fields.add_special_tokens
    limits = PromptLimits(
        param=route.param,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        max_tokens=route.max_tokens,
        add_special_tokens=route.add_special_tokens if special is None else special,
        truncate=fields.truncate_prompt_tokens,
    )
    prompts = prepare_prompts(inputs, model.tokenizer, limits)
    bad_words = encode_bad_words(fields.bad_words or (), model.tokenizer)

    def sampling(prompt: Prompt) -> SamplingParams:
        # Asking for 0 tokens, to have the prompt scored, still makes the engine produce one.
        count = max(1, max_output_tokens(prompt, limits, route.default_max_tokens))
        output = OutputLimits(
            max_tokens=count,
            logprobs=route.logprobs,
            prompt_logprobs=route.prompt_logprobs,
            bad_words=bad_words,
            shows_special_tokens=route.shows_special_tokens,
            grammar=route.grammar,
        )
        return to_sampling_params(fields, model.defaults, output)

    return Work(
        prompts=[(prompt, sampling(prompt)) for prompt in prompts],
        priority=fields.priority or 0,
        cache_salt=salt_number(fields.cache_salt),
        adapter=route.adapter,
    )


def salt_number(salt: str | None) -> int:
    """The engine's number for a tenant's salt; 0 only for none."""
    if salt is None:
        return 0
    digest = hashlib.blake2b(salt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
