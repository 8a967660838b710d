"""One call in the engine: n choices of each prompt, their outputs as pieces of text."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.engine.client import Logprob
from octavo.errors import OctavoError
from octavo.model.detokenizer import Detokenizer, DetokenizerOptions
from octavo.server.disconnect import watch
from octavo.server.merged_streams import MergedStreams, OneStream
from octavo.server.request_report import REPORT, RequestReport
from octavo.server.schemas.shared import PromptTokensDetails, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from octavo.engine.client import EngineClient, RequestOutput, RequestStream
    from octavo.model.detokenizer import TokenBytes
    from octavo.sampling_params import SamplingParams
    from octavo.server.context import ServerContext
    from octavo.server.merged_streams import Outputs
    from octavo.server.prompts import Prompt
    from octavo.server.request_metrics import RequestMetrics
    from octavo.server.work import Work


class Piece(msgspec.Struct, gc=False):  # made once a token
    """What one engine output adds to one choice.

    Attributes:
        choice: Index of the choice: prompt * n + sequence.
        text: New text that is certain.
        token_ids: New tokens; a stop string cuts those after it.
        logprobs: For each of token_ids, when asked for.
        finish_reason: "stop", "length" or "abort" in the choice's last piece.
        stop_reason: The stop string or the request's stop token id that ended it.
    """

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[list[Logprob]]
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing to tell a client that reads only text."""
        return not self.text and self.finish_reason is None


class Generation:
    """The running requests of one call. Used as a context manager: leaving it aborts what runs.

    Attributes:
        prompts: What is continued.
        n: Choices of each prompt.
        prompt_logprobs: For each prompt, for its tokens from the second on, where asked for;
            complete when the prompt's first piece comes.

    Raises:
        NotReadyError: The engine takes no requests now.
    """

    def __init__(
        self, context: ServerContext, token_bytes: TokenBytes, work: Work, started: float
    ) -> None:
        self.prompts = [prompt for prompt, _ in work.prompts]
        self.n = work.sampling.n
        self._sampling = work.sampling
        self.prompt_logprobs: list[list[list[Logprob]]] = [[] for _ in work.prompts]
        self._choices = [
            _Choice(token_bytes, sampling, prompt, _Timer(context.metrics, started))
            for prompt, sampling in work.prompts
            for _ in range(sampling.n)
        ]
        self._cached_tokens = [0] * len(work.prompts)
        self._metrics = context.metrics
        self._has_begun = [False] * len(work.prompts)
        self._streams: list[RequestStream] = []
        try:
            for prompt, sampling in work.prompts:
                self._streams.append(_submit(context.engine, prompt, sampling, work))
        except OctavoError:
            self._end("error")
            raise
        one = len(self._streams) == 1
        self._outputs: Outputs = (
            OneStream(self._streams[0]) if one else MergedStreams(self._streams)
        )

    def get(self, timeout: float | None = None) -> Piece | None:
        """The next piece; None after `timeout` seconds, or once is_finished.

        Raises:
            RequestError: The engine refused a prompt, or failed. All prompts are aborted.
        """
        while True:
            try:
                item = self._outputs.get(timeout)
            except OctavoError:
                self._end("error")
                raise
            if item is None:
                return None
            index, output = item
            piece = self.take(output, index)
            if piece is not None:
                return piece

    def divert(self, taker: Callable[[RequestOutput], bool]) -> None:
        """Where there is one prompt: RequestStream.divert(). The taker makes pieces with take()."""
        if len(self._streams) == 1:
            self._streams[0].divert(taker)

    def __iter__(self) -> Iterator[Piece]:
        """Pieces until every choice has finished."""
        while (piece := self.get()) is not None:
            yield piece

    @property
    def is_finished(self) -> bool:
        """No piece will come any more."""
        return self._outputs.is_finished

    def abort(self) -> None:
        """Free what the call holds in the engine. Never blocks; harmless when over."""
        self._outputs.close()
        self._end("abort")

    @contextlib.contextmanager
    def attended(self, environ: dict[str, Any]) -> Iterator[None]:
        """While a client waits for it: abort when it goes away, and report to the log.

        Args:
            environ: The request's WSGI environment.
        """
        environ[REPORT] = self.report
        with watch(environ, self.abort):
            yield

    def report(self) -> RequestReport:
        """What the call has cost so far."""
        usage = self.usage()
        times = [each.first_token_s for each in self._choices if each.first_token_s is not None]
        return RequestReport(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=sum(self._cached_tokens),
            output_tokens=usage.completion_tokens,
            first_token_s=min(times, default=None),
            finish_reasons=[each.finish_reason or "abort" for each in self._choices],
            sampling=self._sampling,
        )

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def usage(self) -> Usage:
        """Tokens of the whole call so far."""
        return _usage(
            sum(len(prompt.token_ids) for prompt in self.prompts),
            sum(choice.num_tokens for choice in self._choices),
            sum(self._cached_tokens),
        )

    def _end(self, reason: str) -> None:
        for stream in self._streams:
            stream.abort()
        for choice in self._choices:
            choice.give_up(reason)

    def take(self, output: RequestOutput, index: int = 0) -> Piece | None:
        """The piece that an output of a prompt makes, if it makes one. Never blocks."""
        self._cached_tokens[index] = max(self._cached_tokens[index], output.num_cached_tokens)
        if output.token_ids and not self._has_begun[index]:
            self._has_begun[index] = True
            self._metrics.queued(output.queue_time_us * 1e-6)
        if output.prompt_logprobs:
            self.prompt_logprobs[index] += output.prompt_logprobs
        number = index * self.n + output.sequence_index
        choice = self._choices[number]
        if choice.is_finished or not (output.token_ids or output.finish_reason):
            return None
        piece = choice.take(number, output)
        if choice.is_finished and self._is_over(index):
            self._streams[index].abort()
        elif choice.is_finished and output.finish_reason is None:  # by a stop string
            self._streams[index].abort_sequence(output.sequence_index)
        return piece

    def _is_over(self, index: int) -> bool:
        """Every choice of a prompt has finished."""
        choices = self._choices[index * self.n : (index + 1) * self.n]
        return all(choice.is_finished for choice in choices)


class _Choice:
    """The text side of one sequence."""

    def __init__(
        self, token_bytes: TokenBytes, sampling: SamplingParams, prompt: Prompt, timer: _Timer
    ) -> None:
        self._prompt_tokens = len(prompt.token_ids)
        self._timer = timer
        self._stop_token_ids = frozenset(sampling.stop_token_ids)
        special = token_bytes.special_ids
        self._detokenizer = Detokenizer(
            token_bytes,
            DetokenizerOptions(
                skip_special_tokens=sampling.skip_special_tokens,
                stop=sampling.stop,
                include_stop_str_in_output=sampling.include_stop_str_in_output,
                min_tokens=sampling.min_tokens,
                at_start=all(id_ in special for id_ in prompt.token_ids),
            ),
        )
        self.is_finished = False
        self.finish_reason: str | None = None

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request's arrival to the first token."""
        return self._timer.first_token_s

    @property
    def num_tokens(self) -> int:
        """Tokens of the output so far."""
        return self._detokenizer.num_tokens

    def take(self, number: int, output: RequestOutput) -> Piece:
        """Turn an output of the engine into a piece."""
        detokenizer = self._detokenizer
        if output.finish_reason is None and detokenizer.is_plain:
            self._timer.tokens(len(output.token_ids), self._prompt_tokens)
            text = detokenizer.feed_plain(output.token_ids)
            return Piece(number, text, output.token_ids, output.logprobs)
        before = detokenizer.num_tokens
        stop_token_id = -1 if output.stop_token_id is None else output.stop_token_id
        text, stopped = detokenizer.feed(output.token_ids, stop_token_id)
        reason = output.finish_reason
        if reason is not None and not stopped:
            text += detokenizer.flush()
            stopped = detokenizer.stop_string is not None
        taken = detokenizer.num_tokens - before
        if taken:
            self._timer.tokens(taken, self._prompt_tokens)
        if stopped or reason is not None:
            self._finish("stop" if stopped else reason or "abort")
        return Piece(
            number,
            text,
            output.token_ids[:taken],
            output.logprobs[:taken],
            "stop" if stopped else reason,
            detokenizer.stop_string if stopped else self._stop_id(output),
        )

    def give_up(self, reason: str) -> None:
        """No more comes of this choice."""
        if not self.is_finished:
            self._finish(reason)

    def _finish(self, reason: str) -> None:
        self.is_finished = True
        self.finish_reason = reason
        self._timer.finish(reason, self.num_tokens)

    def _stop_id(self, output: RequestOutput) -> int | None:
        """The id that ended the sequence, where the request named it; the model's own is none."""
        return output.stop_token_id if output.stop_token_id in self._stop_token_ids else None


class _Timer:
    """Measures one choice."""

    def __init__(self, metrics: RequestMetrics, started: float) -> None:
        self._metrics = metrics
        self._started = started
        self._last: float | None = None
        self.first_token_s: float | None = None

    def tokens(self, count: int, prompt_tokens: int) -> None:
        """The choice got tokens."""
        now = time.monotonic()
        if self._last is None:
            self.first_token_s = now - self._started
            self._metrics.first_token(self.first_token_s, prompt_tokens)
        else:
            self._metrics.next_tokens(now - self._last, count)
        self._last = now

    def finish(self, reason: str, num_tokens: int) -> None:
        """The choice ended."""
        self._metrics.finished(reason, time.monotonic() - self._started, num_tokens)


def _submit(
    engine: EngineClient, prompt: Prompt, sampling: SamplingParams, work: Work
) -> RequestStream:
    return engine.submit(
        prompt.token_ids,
        sampling,
        priority=work.priority,
        cache_salt=work.cache_salt,
        adapter=work.adapter,
    )


def _usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
    )
