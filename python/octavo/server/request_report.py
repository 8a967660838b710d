"""What a request cost, for the log and for traces; nothing of what was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.sampling_params import SamplingParams

REPORT = "octavo.report"  # key of a WSGI environment: a function that makes a RequestReport
REQUEST_ID = "octavo.request_id"  # the same: the request's id


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReport:
    """Of one call, over all its choices.

    Attributes:
        prompt_tokens: Of all prompts.
        cached_tokens: Of these, found in the prefix cache.
        output_tokens: Generated.
        first_token_s: Seconds from the arrival to the first token; None where none came.
        finish_reasons: Of each choice.
        sampling: As the engine was told.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_token_s: float | None
    finish_reasons: list[str]
    sampling: SamplingParams

    def fields(self) -> dict[str, object]:
        """For a line of the log."""
        first = self.first_token_s
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "first_token_s": None if first is None else round(first, 6),
            "finish_reasons": self.finish_reasons,
        }
