"""How the HTTP side talks to the engine: the interface, its value types, one request's stream.

Everything here waits with `threading` primitives. In a gunicorn worker gevent has patched them, so
a wait suspends one greenlet; under any threaded WSGI server the same code suspends one thread.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from array import array
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from octavo.errors import EngineFaultError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from octavo.lora_modules import LoraModule
    from octavo.sampling_params import SamplingParams

# token id, log-probability of the model's raw distribution, rank from 1
Logprob = tuple[int, float, int]


TICK_S = 0.5
LONG_WAIT_S = 4.0


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine's life, read from shared memory: it costs microseconds.

    Attributes:
        phase: One of octavo.engine.status_page.PHASES.
        progress: Share of the phase that is done, 0 to 1.
        bytes_done: Bytes read or downloaded in this phase.
        bytes_total: 0 where the phase has no bytes.
        bytes_found: Of bytes_done, those that were there before the phase.
        elapsed_s: Seconds since the server process started.
        heartbeat_age_s: Seconds since the engine's last sign of life; 0 before its first one.
        is_ready: Requests are served.
        is_alive: False once the engine died, and while a started engine has no heartbeat.
        is_draining: The server is ending.
        reason: Why is_alive is False, else "".
        generation: Engine processes started so far.
        phase_seconds: Duration of each finished or running phase of this generation.
        sleep_level: 0 awake; 1 the KV cache is given back, 2 the weights too.
        num_wake_ups: Of the generations, those that a sleep of level 2 made necessary.
    """

    phase: str
    progress: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_found: int = 0
    elapsed_s: float = 0.0
    heartbeat_age_s: float = 0.0
    is_ready: bool = False
    is_alive: bool = True
    is_draining: bool = False
    reason: str = ""
    generation: int = 1
    phase_seconds: dict[str, float] = {}
    sleep_level: int = 0
    num_wake_ups: int = 0

    @property
    def bytes_per_s(self) -> float:
        """Mean rate of the running phase; 0 where there is none yet."""
        seconds = self.phase_seconds.get(self.phase, 0.0)
        return max(0, self.bytes_done - self.bytes_found) / seconds if seconds > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """What the bytes that are left take at that rate; None where that is not known."""
        rate = self.bytes_per_s
        return (self.bytes_total - self.bytes_done) / rate if rate > 0 else None


class ModelInfo(msgspec.Struct, frozen=True):
    """What the engine says about its model once it is ready.

    Attributes:
        vocab_size: Width of the logits; every token id is below it.
        max_model_len: Prompt and output tokens of one sequence together.
        hidden_size: Dimensions of an embedding.
    """

    vocab_size: int
    max_model_len: int
    hidden_size: int = 0


class AdapterCard(msgspec.Struct, frozen=True, array_like=True):
    """What the HTTP side knows of an adapter.

    Attributes:
        name: What requests call it.
        root: The last part of its path.
        parent: The model that it is said to belong to; "" for the one served.
    """

    name: str
    root: str
    parent: str = ""


def card_of(module: LoraModule) -> AdapterCard:
    """The card of an adapter that the configuration names."""
    return AdapterCard(module.name, Path(module.path).name, module.base_model_name)


class RequestOutput(msgspec.Struct, gc=False):  # made once a token
    """Tokens of one sequence since its last RequestOutput.

    Attributes:
        sequence_index: 0 .. n - 1.
        token_ids: The new tokens.
        logprobs: For each new token, when asked for: the chosen one, then the most likely in order.
        prompt_logprobs: The same for each prompt token but the first; comes in pieces.
        finish_reason: "stop" or "length" in the last output of the sequence; a request that the
            engine could not finish ends with an error instead.
        stop_token_id: The id that ended the sequence, where one did.
        num_prompt_tokens: Length of the prompt.
        num_cached_tokens: Of these, served from the prefix cache.
        pooled: Hidden states of the prompt by SamplingParams.pooling; those of all outputs are to
            be added.
        queue_time_us: From the request's arrival in the engine to its first step.
    """

    sequence_index: int
    token_ids: list[int]
    logprobs: list[list[Logprob]] = []
    prompt_logprobs: list[list[Logprob]] = []
    finish_reason: str | None = None
    stop_token_id: int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    pooled: array[float] | None = None
    queue_time_us: int = 0

    def extend(self, later: RequestOutput) -> None:
        """Append what the same sequence produced later."""
        self.token_ids += later.token_ids
        if later.logprobs or later.prompt_logprobs:
            self.logprobs = self.logprobs + later.logprobs
            self.prompt_logprobs = self.prompt_logprobs + later.prompt_logprobs
        self.finish_reason = later.finish_reason
        self.stop_token_id = later.stop_token_id
        self.num_cached_tokens = later.num_cached_tokens
        if self.pooled is None:
            self.pooled = later.pooled
        elif later.pooled is not None:
            self.pooled = array("f", map(float.__add__, self.pooled, later.pooled))


class RequestStream:
    """The outputs of one request. One reader and one feeder; any thread may fail or abort it.

    A slow reader costs a bounded number of outputs: what it leaves is merged by sequence, and a
    sequence's own max_tokens bounds its size. There is no lock: deque operations are atomic, and
    the flags are written before the reader is woken.

    Waking a reader costs more than most of what it does with an output. So a reader may leave that
    to a function, its taker, which the feeder calls while the reader waits; see divert().

    Args:
        num_sequences: Each of them ends with a finish reason.
        abort: Stops the request in the engine.
        abort_sequence: Stops one of its sequences there.
        is_ticked: Somebody calls tick().

    Attributes:
        is_diverted: The reader waits, has a taker, and nothing has been done that wakes it.
    """

    def __init__(
        self,
        num_sequences: int,
        abort: Callable[[RequestStream], None],
        abort_sequence: Callable[[RequestStream, int], None],
        *,
        is_ticked: bool = False,
    ) -> None:
        self._unfinished = num_sequences  # sequences whose last output was not fed yet
        self._abort = abort
        self._abort_sequence = abort_sequence
        self._is_ticked = is_ticked
        self._deadline = math.inf  # of the wait that tick() is to end
        self._patience = math.inf  # of that wait
        self._taker: Callable[[RequestOutput], bool] | None = None
        self.is_diverted = False
        self._has_taken = False  # since the last tick
        self._is_called = False  # by the taker
        self._waiting: deque[RequestOutput] = deque()
        self._max_waiting = 2 * num_sequences
        self._error: RequestError | None = None
        self._wakeup = threading.Event()

    def get(self, timeout: float | None = None) -> RequestOutput | None:
        """Wait for the next output; None after `timeout` seconds, or once nothing more will come.

        Where a taker called for the reader, None comes at once.

        Raises:
            RequestError: The request was refused or the engine failed; every output that came
                before has been returned.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._wakeup.clear()
            is_ended = self.is_ended  # looked at before the queue, so nothing fed is missed
            try:
                return self._waiting.popleft()
            except IndexError:
                if is_ended:
                    if self._error is not None:
                        raise self._error from None
                    return None
            if self._is_called:
                self._is_called = False
                return None
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            self.is_diverted = self._taker is not None
            self._wait(left)
            self.is_diverted = False

    def divert(self, taker: Callable[[RequestOutput], bool]) -> None:
        """Have outputs taken by a function while the reader waits; deliver() calls it.

        Only where reader and feeder take turns, as greenlets of one thread do. A sequence's last
        output is always the reader's. The wait's time begins anew with what is taken.

        Args:
            taker: Takes an output and returns whether the reader may go on waiting. It must not
                block or raise.
        """
        self._taker = taker

    def deliver(self) -> None:
        """Give what was fed to the taker, or else to the reader."""
        taker, waiting = self._taker, self._waiting
        if taker is None or not self.is_diverted:
            return
        while waiting and waiting[0].finish_reason is None:
            if not taker(waiting.popleft()):
                self._is_called = True
                break
        else:
            self._has_taken = True
            if not waiting:
                return
        self.is_diverted = False
        self._wakeup.set()

    def tick(self, now: float) -> None:
        """End a long wait whose time is over.

        A timer for each wait would cost more than the rest of get(): a stream with is_ticked leaves
        waits of LONG_WAIT_S and more to somebody who calls this every TICK_S.
        """
        if now < self._deadline:
            return
        if self._has_taken:
            self._has_taken = False
            self._deadline = now + self._patience
        else:
            self._wakeup.set()

    def _wait(self, seconds: float) -> None:
        if seconds == math.inf:
            self._wakeup.wait()
        elif self._is_ticked and seconds >= LONG_WAIT_S:
            self._has_taken = False
            self._patience = seconds
            self._deadline = time.monotonic() + seconds
            self._wakeup.wait()
            self._deadline = math.inf
        else:
            self._wakeup.wait(seconds)

    @property
    def is_ended(self) -> bool:
        """Nothing more will be fed."""
        return self._unfinished <= 0 or self._error is not None

    @property
    def is_finished(self) -> bool:
        """Nothing more will come out of get(): read to the end, failed or aborted."""
        return self.is_ended and not self._waiting

    def __iter__(self) -> Iterator[RequestOutput]:
        """Outputs until every sequence has finished."""
        while (output := self.get()) is not None:
            yield output

    def abort(self) -> None:
        """Stop the request and free what it holds in the engine. Never blocks; harmless when over.

        A reader that waits in get() returns None.
        """
        self._taker, self.is_diverted = None, False  # it usually refers to this stream
        if not self.is_ended:
            self._unfinished = 0
            self._wakeup.set()
            self._abort(self)

    def abort_sequence(self, index: int) -> None:
        """Stop one sequence; its last output still comes. As abort() otherwise."""
        if not self.is_ended:
            self._abort_sequence(self, index)

    def __enter__(self) -> RequestStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def feed(self, output: RequestOutput) -> bool:
        """Hand an output to the reader; True where it is left to deliver()."""
        if self._waiting:
            output = self._merged(output)
        self._waiting.append(output)
        if output.finish_reason is not None:
            self._unfinished -= 1
        if self.is_diverted:
            return True
        self._wakeup.set()
        return False

    def fail(self, error: RequestError) -> None:
        """End the stream with an error; the first one counts."""
        if not self.is_ended:
            self._error = error
            self._wakeup.set()

    def _merged(self, output: RequestOutput) -> RequestOutput:
        """Join an output to those that wait; the reader may take from them meanwhile."""
        if len(self._waiting) >= self._max_waiting:
            self._merge_all()
        with contextlib.suppress(IndexError):
            last = self._waiting.pop()
            if last.sequence_index == output.sequence_index and last.finish_reason is None:
                last.extend(output)
                return last
            self._waiting.append(last)
        return output

    def _merge_all(self) -> None:
        """One output for each sequence; those with a finish reason are the last of theirs."""
        newest_first: list[RequestOutput] = []  # the reader takes the oldest meanwhile
        with contextlib.suppress(IndexError):
            while True:
                newest_first.append(self._waiting.pop())
        merged: dict[int, RequestOutput] = {}
        for each in reversed(newest_first):
            if each.sequence_index in merged:
                merged[each.sequence_index].extend(each)
            else:
                merged[each.sequence_index] = each
        self._waiting.extend(merged.values())


class EngineClient(Protocol):
    """What the HTTP resources need of an engine."""

    def state(self) -> EngineState:
        """The engine's life now; never blocks, works in every phase."""

    def model_info(self) -> ModelInfo:
        """Facts of the loaded model.

        Raises:
            NotReadyError: The engine is not ready.
        """

    def submit(
        self,
        prompt_token_ids: list[int] | bytes,
        sampling: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: int = 0,
        adapter: str = "",
    ) -> RequestStream:
        """Start a request; bytes are int32 little-endian. Never blocks.

        What the engine refuses comes out of the stream's get(): InvalidRequestError for a prompt or
        parameter, UnknownModelError for an adapter that is gone, QueueFullError when too many wait.

        Raises:
            NotReadyError: The engine is not ready, or the server is draining.
        """

    def stats(self, timeout: float) -> dict[str, float]:
        """Counters and gauges of the engine by name.

        Raises:
            NotReadyError: The engine is not ready.
            EngineFaultError: No answer in `timeout` seconds.
        """

    def reset_prefix_cache(self) -> None:
        """Forget every cached block that nobody holds.

        Raises:
            NotReadyError: The engine is not ready.
        """

    def self_check(self) -> None:
        """Have the engine check its own accounting before its next step.

        Once it was found consistent, num_self_checks of stats() is one more. Otherwise the engine
        fails, and is started again.

        Raises:
            NotReadyError: The engine is not ready.
        """

    def sleep(self, level: int, patience_s: float) -> None:
        """Admit nothing more, let what runs finish, and free memory; returns when that is done.

        Args:
            level: 1 gives the KV cache back, 2 the weights too.
            patience_s: What still runs after that time is ended.

        Raises:
            NotReadyError: The engine is not ready.
            EngineFaultError: The engine did not fall asleep.
        """

    def wake_up(self) -> None:
        """End a sleep; returns when requests are served again.

        Raises:
            NotReadyError: There is no memory for it now, or the server is draining.
            EngineFaultError: The engine failed.
        """

    def adapters(self) -> Mapping[str, AdapterCard]:
        """Those that are loaded, by name, as far as this client knows; never blocks."""

    def refresh_adapters(self, timeout: float) -> None:
        """Ask the engine which are loaded. Raises: as load_adapter."""

    def load_adapter(self, name: str, path: str, *, replaces: bool, timeout: float) -> None:
        """Load an adapter from below --lora-root. Running requests go on meanwhile.

        Raises:
            NotReadyError: The engine is not ready.
            InvalidRequestError: It may not or cannot be loaded.
            EngineFaultError: No answer in `timeout` seconds, or the engine failed.
        """

    def unload_adapter(self, name: str, timeout: float) -> None:
        """Refuse new requests for an adapter; those that run go on.

        Raises:
            UnknownModelError: There is none of that name. Otherwise as load_adapter.
        """


def engine_gone() -> EngineFaultError:
    """The error of requests whose engine went away."""
    return EngineFaultError("The engine failed while it served this request. Please try again.")
