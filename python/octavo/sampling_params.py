"""Sampling parameters: the same fields, names and meanings as the engine's C++ struct."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How the tokens of one request are chosen.

    Attributes:
        n: Sequences sampled from one prompt.
        temperature: 0 is greedy.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with this probability; in (0, 1].
        min_p: Drop tokens less likely than this share of the most likely one; in [0, 1].
        repetition_penalty: Over prompt and output tokens; 1 is none.
        presence_penalty: Subtracted once for each token already in the output.
        frequency_penalty: Subtracted for each occurrence in the output.
        logit_bias: Token id to added logit.
        allowed_token_ids: When not empty, only these can be sampled.
        bad_words: Token sequences that are never completed.
        seed: Makes the draw repeatable in any batch.
        max_tokens: Upper bound of output tokens.
        min_tokens: End-of-sequence and stop ids are banned before.
        ignore_eos: Go on after an end-of-sequence token.
        stop_token_ids: Ids that end the output.
        stop: Strings that end the output; applied to the text, outside the engine.
        include_stop_str_in_output: Keep the stop string in the text.
        skip_special_tokens: Leave special tokens out of the text.
        logprobs: None, or how many of the most likely tokens to report beside the chosen one.
        prompt_logprobs: The same for the prompt's tokens.
        pooling: "last" reports the last hidden state of the prompt's last token, "sum" the sum over
            its tokens, which needs prompt_logprobs; "" neither.
        grammar: What the output has to match, made by a function of octavo.grammar.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pooling: str = ""
    grammar: str | None = None
