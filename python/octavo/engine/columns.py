"""The engine's records of one frame, as the outputs of requests."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

from octavo.engine.client import Logprob, RequestOutput
from octavo.engine.protocol import FINISH_REASONS, LOGPROB

if TYPE_CHECKING:
    from octavo.engine.client import RequestStream
    from octavo.engine.protocol import Outputs
    from octavo.sampling_params import SamplingParams

_NONE: list[list[Logprob]] = []  # of what was not asked for; never appended to


class Live:
    """A request that the engine knows."""

    __slots__ = ("logprobs", "prompt_logprobs", "stopped", "stream")

    def __init__(self, stream: RequestStream, sampling: SamplingParams) -> None:
        self.stream = stream
        self.logprobs = 1 + (sampling.logprobs or 0)
        self.prompt_logprobs = 1 + (sampling.prompt_logprobs or 0)
        self.stopped: set[int] = set()  # sequences that were aborted from here


class Columns:
    """The columns of an Outputs frame, cut record by record."""

    def __init__(self, outputs: Outputs) -> None:
        self._tokens = array.array("i", outputs.token_ids).tolist()
        self._logprobs: list[Logprob] = list(LOGPROB.iter_unpack(outputs.logprobs))
        self._prompt_logprobs: list[Logprob] = list(LOGPROB.iter_unpack(outputs.prompt_logprobs))
        self._floats = array.array("f", outputs.pooled)
        self._token = self._logprob = self._prompt_logprob = self._pooled = 0

    def take(self, record: tuple[int, ...], live: Live | None) -> RequestOutput:
        """The output of the next record."""
        (
            _, index, num_tokens, num_prompt, num_cached, stop_id, num_lp, num_plp, queue_us,
            num_pooled, reason,
        ) = record  # fmt: skip
        start = self._token
        self._token = end = start + num_tokens
        output = RequestOutput(  # by position: half the time
            index,
            self._tokens[start:end],
            _NONE,
            _NONE,
            FINISH_REASONS[reason],
            stop_id if stop_id >= 0 else None,
            num_prompt,
            num_cached,
            None,
            queue_us,
        )
        if num_pooled:
            begin = self._pooled
            self._pooled = begin + num_pooled
            output.pooled = self._floats[begin : self._pooled]
        if num_lp or num_plp:
            self._take_logprobs(output, num_lp, num_plp, live)
        return output

    def _take_logprobs(
        self, output: RequestOutput, num: int, num_prompt: int, live: Live | None
    ) -> None:
        start, self._logprob = self._logprob, self._logprob + num
        prompt_start, self._prompt_logprob = self._prompt_logprob, self._prompt_logprob + num_prompt
        if live is None:
            return
        output.logprobs = _groups(self._logprobs[start : self._logprob], live.logprobs)
        entries = self._prompt_logprobs[prompt_start : self._prompt_logprob]
        output.prompt_logprobs = _groups(entries, live.prompt_logprobs)


def _groups(entries: list[Logprob], size: int) -> list[list[Logprob]]:
    """Entries of one token each."""
    return [entries[i : i + size] for i in range(0, len(entries), size)]
