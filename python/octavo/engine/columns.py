"""Outputs as they come from the engine: columns that hold the values of all records."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Protocol

from octavo.engine.client import RequestOutput
from octavo.engine.protocol import FINISH_REASONS, LOGPROB

if TYPE_CHECKING:
    from octavo.engine.client import Logprob
    from octavo.engine.protocol import Outputs


class Groups(Protocol):
    """How many entries a request has for each token."""

    logprobs: int
    prompt_logprobs: int


class Columns:
    """The columns of an Outputs frame, cut record by record."""

    def __init__(self, outputs: Outputs) -> None:
        self._tokens = array.array("i", outputs.token_ids).tolist()
        self._logprobs: list[Logprob] = list(LOGPROB.iter_unpack(outputs.logprobs))
        self._prompt_logprobs: list[Logprob] = list(LOGPROB.iter_unpack(outputs.prompt_logprobs))
        self._floats = array.array("f", outputs.pooled)
        self._token = self._logprob = self._prompt_logprob = self._pooled = 0

    def take(self, record: tuple[int, ...], groups: Groups | None) -> RequestOutput:
        """The output of the next record."""
        (
            _, index, num_tokens, num_prompt, num_cached, stop_id, num_lp, num_plp, queue_us,
            num_pooled, reason,
        ) = record  # fmt: skip
        start = self._token
        self._token = start + num_tokens
        output = RequestOutput(
            index,
            self._tokens[start : self._token],
            finish_reason=FINISH_REASONS[reason],
            stop_token_id=stop_id if stop_id >= 0 else None,
            num_prompt_tokens=num_prompt,
            num_cached_tokens=num_cached,
            queue_time_us=queue_us,
        )
        if num_pooled:
            begin = self._pooled
            self._pooled = begin + num_pooled
            output.pooled = self._floats[begin : self._pooled]
        if num_lp or num_plp:
            self._take_logprobs(output, num_lp, num_plp, groups)
        return output

    def _take_logprobs(
        self, output: RequestOutput, num: int, num_prompt: int, groups: Groups | None
    ) -> None:
        start, self._logprob = self._logprob, self._logprob + num
        prompt_start, self._prompt_logprob = self._prompt_logprob, self._prompt_logprob + num_prompt
        if groups is None:
            return
        output.logprobs = _groups(self._logprobs[start : self._logprob], groups.logprobs)
        entries = self._prompt_logprobs[prompt_start : self._prompt_logprob]
        output.prompt_logprobs = _groups(entries, groups.prompt_logprobs)


def _groups(entries: list[Logprob], size: int) -> list[list[Logprob]]:
    """Entries of one token each."""
    return [entries[i : i + size] for i in range(0, len(entries), size)]
