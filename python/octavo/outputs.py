"""Results of offline requests, and how they are put together from the engine's records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.engine.protocol import FINISH_REASONS, LOGPROB, RECORD
from octavo.model.detokenizer import Detokenizer, DetokenizerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from octavo import _core
    from octavo.model.tokenizer import Tokenizer
    from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability under the model's raw distribution.

    Attributes:
        logprob: Natural logarithm.
        rank: 1 for the most likely token.
        decoded_token: The token's text.
    """

    logprob: float
    rank: int
    decoded_token: str


Logprobs = dict[int, Logprob]


@dataclass(slots=True)
class CompletionOutput:
    """One sequence that a prompt was continued with.

    Attributes:
        index: 0 .. n - 1.
        text: The new text.
        token_ids: The new tokens.
        cumulative_logprob: Sum over the tokens; None unless logprobs were asked for.
        logprobs: For each token the chosen and the most likely ones; None unless asked for.
        finish_reason: "stop" or "length".
        stop_reason: The stop string or stop token id that ended it; None for an end of sequence.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestOutput:
    """What came of one prompt.

    Attributes:
        prompt: Its text; None where token ids were given.
        prompt_token_ids: Its tokens.
        outputs: n sequences.
        prompt_logprobs: For each prompt token, None for the first; None unless asked for.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[Logprobs | None] | None = None
    num_cached_tokens: int = 0


Entry = tuple[int, float, int]  # token id, log-probability, rank


@dataclass(frozen=True, slots=True)
class Record:
    """One of the engine's records with its share of the columns."""

    request_id: int
    sequence_index: int
    token_ids: Sequence[int]
    num_cached_tokens: int
    stop_token_id: int
    logprobs: Sequence[Entry]
    prompt_logprobs: Sequence[Entry]
    pooled: Sequence[float]
    finish_reason: str | None


def records(batch: _core.OutputBatch) -> Iterator[Record]:
    """The records of a batch, each with its share of the columns."""
    token_ids = memoryview(batch.token_ids).cast("i")
    logprobs = list(LOGPROB.iter_unpack(batch.logprobs))
    prompt_logprobs = list(LOGPROB.iter_unpack(batch.prompt_logprobs))
    pooled = memoryview(batch.pooled).cast("f")
    token = entry = prompt_entry = vector = 0
    for row in RECORD.iter_unpack(batch.records):
        (
            id_,
            index,
            num_tokens,
            _,
            num_cached,
            stop_id,
            num_entries,
            num_prompt,
            _,
            num_pooled,
            end,
        ) = row
        yield Record(
            request_id=id_,
            sequence_index=index,
            token_ids=token_ids[token : token + num_tokens].tolist(),
            num_cached_tokens=num_cached,
            stop_token_id=stop_id,
            logprobs=logprobs[entry : entry + num_entries],
            prompt_logprobs=prompt_logprobs[prompt_entry : prompt_entry + num_prompt],
            pooled=pooled[vector : vector + num_pooled],
            finish_reason=FINISH_REASONS[end],
        )
        token += num_tokens
        entry += num_entries
        prompt_entry += num_prompt
        vector += num_pooled


class Assembly:
    """A request whose records are put together.

    Attributes:
        params: How it is sampled.
        adapter: The adapter's name; "" for the model itself.
        output: What has come so far.
        runs: Sequences that the engine has not finished yet.
        pooled: The prompt's hidden states by params.pooling.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str | None,
        token_ids: list[int],
        params: SamplingParams,
        adapter: str = "",
    ) -> None:
        options = DetokenizerOptions(
            skip_special_tokens=params.skip_special_tokens,
            stop=params.stop,
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )
        outputs = [CompletionOutput(index) for index in range(params.n)]
        self.params = params
        self.adapter = adapter
        self.output = RequestOutput(prompt, token_ids, outputs)
        self.runs = params.n
        self.pooled: list[float] = []
        if params.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None]
        if params.logprobs is not None:
            for each in outputs:
                each.logprobs, each.cumulative_logprob = [], 0.0
        self._tokenizer = tokenizer
        self._detokenizers = [Detokenizer(tokenizer.token_bytes, options) for _ in outputs]

    @property
    def is_done(self) -> bool:
        """Every sequence is complete; a stop string can make it so before the engine knows."""
        return all(each.finish_reason is not None for each in self.output.outputs)

    def take(self, record: Record) -> None:
        """Append what a record brings to its sequence."""
        self.runs -= record.finish_reason is not None
        if record.pooled:
            before = self.pooled or [0.0] * len(record.pooled)
            self.pooled = list(map(float.__add__, before, record.pooled))
        if record.sequence_index == 0:
            self.output.num_cached_tokens = record.num_cached_tokens
        if self.output.prompt_logprobs is not None:
            count = 1 + (self.params.prompt_logprobs or 0)
            self.output.prompt_logprobs += self._grouped(record.prompt_logprobs, count)
        sequence = self.output.outputs[record.sequence_index]
        if sequence.finish_reason is None:
            self._extend(sequence, self._detokenizers[record.sequence_index], record)

    def _extend(self, sequence: CompletionOutput, detokenizer: Detokenizer, record: Record) -> None:
        text, stopped = detokenizer.feed(record.token_ids, record.stop_token_id)
        if record.finish_reason is not None and not stopped:
            text += detokenizer.flush()
        sequence.text += text
        self._extend_tokens(sequence, record, detokenizer.num_tokens - len(sequence.token_ids))
        if detokenizer.stop_string is not None:
            sequence.finish_reason, sequence.stop_reason = "stop", detokenizer.stop_string
        elif record.finish_reason is not None:
            sequence.finish_reason = record.finish_reason
            if record.stop_token_id in self.params.stop_token_ids:
                sequence.stop_reason = record.stop_token_id

    def _extend_tokens(self, sequence: CompletionOutput, record: Record, num_tokens: int) -> None:
        """Take the record's tokens up to the one that completed a stop string."""
        sequence.token_ids += record.token_ids[:num_tokens]
        if sequence.logprobs is None or sequence.cumulative_logprob is None:
            return
        count = 1 + (self.params.logprobs or 0)
        entries = record.logprobs[: count * num_tokens]
        sequence.logprobs += self._grouped(entries, count)
        sequence.cumulative_logprob += sum(logprob for _, logprob, _ in entries[::count])

    def _grouped(self, entries: Sequence[Entry], count: int) -> Iterator[Logprobs]:
        """The entries of each position; the chosen token is often among the likely ones."""
        decode = self._tokenizer.decode
        for begin in range(0, len(entries), count):
            yield {
                token_id: Logprob(logprob, rank, decode([token_id], skip_special_tokens=False))
                for token_id, logprob, rank in entries[begin : begin + count]
            }
