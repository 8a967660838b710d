"""Embeddings: how the engine is asked for them, and what is made of its answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence


def embedding_params(pooling: Literal["last", "mean"]) -> SamplingParams:
    """What makes the engine report the hidden states of a prompt."""
    if pooling == "last":
        return SamplingParams(temperature=0.0, max_tokens=1, pooling="last")
    # With log-probabilities every position is computed, none is found in the prefix cache.
    return SamplingParams(temperature=0.0, max_tokens=1, pooling="sum", prompt_logprobs=0)


def finished_embedding(total: Sequence[float], count: int, *, is_unit: bool) -> list[float]:
    """The mean of `count` states whose sum is given, or that scaled to length 1."""
    divisor = float(count)
    if is_unit:
        divisor = math.sqrt(math.fsum(value * value for value in total)) or 1.0
    return [value / divisor for value in total]
