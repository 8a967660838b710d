"""An engine without a model: what it generates is a script, the same every time."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.engine.client import (
    AdapterCard,
    EngineState,
    Logprob,
    ModelInfo,
    RequestOutput,
    RequestStream,
)
from octavo.errors import InvalidRequestError, NotReadyError, RequestError, UnknownModelError
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    import threading

VOCAB_SIZE = 260
EOS = 257
MAX_MODEL_LEN = 512
HIDDEN_SIZE = 3

# Prompt, sampling and sequence index to the tokens of one sequence, the end token included.
Script = Callable[[list[int], SamplingParams, int], list[int]]


def rotate(prompt: list[int], sampling: SamplingParams, index: int) -> list[int]:
    """Continue with the prompt's own bytes, each sequence from another place, for ever."""
    plain = [id_ for id_ in prompt if id_ < 256] or [65]
    return [plain[(index + i) % len(plain)] for i in range(sampling.max_tokens)]


def say(*texts: str, end: bool = True) -> Script:
    """Say a text byte by byte, sequence k the k-th one; then the end token."""

    def script(prompt: list[int], sampling: SamplingParams, index: int) -> list[int]:
        ids = list(texts[index % len(texts)].encode())
        return [*ids, EOS] if end else ids

    return script


@dataclass
class Submission:
    prompt: list[int]
    sampling: SamplingParams
    priority: int
    cache_salt: int
    adapter: str = ""
    stream: ScriptedStream | None = None
    aborted: bool = False
    stopped: list[int] = field(default_factory=list)  # sequences


@dataclass
class ScriptedEngine:
    """Implements octavo.engine.client.EngineClient.

    Attributes:
        script: What to generate.
        tokens_per_step: Tokens of one output.
        fail_at: Outputs after which each stream fails with `failure`.
        idle_gets: Times that get() returns nothing before the first output.
    """

    script: Script = rotate
    tokens_per_step: int = 1
    fail_at: int | None = None
    failure: RequestError | None = None
    idle_gets: int = 0
    cached_tokens: int = 0
    queue_time_us: int = 0
    ready: bool = True
    phase: str = "ready"
    draining: bool = False
    submissions: list[Submission] = field(default_factory=list)
    num_self_checks: int = 0
    loaded: dict[str, AdapterCard] = field(default_factory=dict)  # as this worker knows it
    elsewhere: dict[str, AdapterCard] = field(default_factory=dict)  # what refresh finds besides
    sleep_level: int = 0
    sleeps: list[tuple[int, float]] = field(default_factory=list)
    gate: threading.Event | None = None  # outputs come once it is set

    def state(self) -> EngineState:
        return EngineState(
            phase=self.phase if self.ready else "loading_weights",
            is_ready=self.ready and not self.draining and not self.sleep_level,
            is_draining=self.draining,
            sleep_level=self.sleep_level,
            phase_seconds={"loading_weights": 1.5},
        )

    def model_info(self) -> ModelInfo:
        if not self.ready:
            raise NotReadyError("The model is not ready yet.")
        return ModelInfo(VOCAB_SIZE, MAX_MODEL_LEN, HIDDEN_SIZE)

    def submit(
        self,
        prompt_token_ids: list[int] | bytes,
        sampling: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: int = 0,
        adapter: str = "",
    ) -> RequestStream:
        self.model_info()
        assert isinstance(prompt_token_ids, list)
        assert prompt_token_ids
        assert all(0 <= id_ < VOCAB_SIZE for id_ in prompt_token_ids)
        assert len(prompt_token_ids) + sampling.max_tokens <= MAX_MODEL_LEN
        submission = Submission(prompt_token_ids, sampling, priority, cache_salt, adapter=adapter)
        self.submissions.append(submission)
        submission.stream = ScriptedStream(self, submission)
        return submission.stream

    def stats(self, timeout: float) -> dict[str, float]:
        self.model_info()
        return {
            "num_running": 3,
            "num_waiting": 2,
            "num_blocks": 100,
            "num_free_blocks": 75,
            "num_preemptions": 1,
            "num_self_checks": self.num_self_checks,
            "num_prompt_tokens": 10,
            "num_generation_tokens": 20,
            "num_prefix_query_tokens": 8,
            "num_prefix_hit_tokens": 4,
            "step_seconds": 0.25,
        }

    def reset_prefix_cache(self) -> None:
        self.model_info()

    def self_check(self) -> None:
        self.num_self_checks += 1

    def adapters(self) -> dict[str, AdapterCard]:
        return self.loaded

    def refresh_adapters(self, timeout: float) -> None:
        self.model_info()
        self.loaded |= self.elsewhere

    def load_adapter(self, name: str, path: str, *, replaces: bool, timeout: float) -> None:
        if name in self.loaded and not replaces:
            raise InvalidRequestError(f"The name {name!r} is taken.", param="lora_name")
        self.loaded[name] = AdapterCard(name, path.rpartition("/")[2])

    def unload_adapter(self, name: str, timeout: float) -> None:
        if name not in self.loaded:
            raise UnknownModelError(f"The model {name!r} is not served here.", param="model")
        del self.loaded[name]

    def sleep(self, level: int, patience_s: float) -> None:
        self.sleeps.append((level, patience_s))
        self.sleep_level = level

    def wake_up(self) -> None:
        self.sleep_level = 0

    @property
    def last(self) -> Submission:
        return self.submissions[-1]


class ScriptedStream(RequestStream):
    """Makes the next output whenever its reader has none left."""

    def __init__(self, engine: ScriptedEngine, submission: Submission) -> None:
        super().__init__(
            submission.sampling.n,
            lambda _: setattr(submission, "aborted", True),
            lambda _, index: submission.stopped.append(index),
        )
        self._engine = engine
        self._outputs = list(_outputs(engine, submission))
        self._idle = engine.idle_gets
        self._given = 0

    def get(self, timeout: float | None = None) -> RequestOutput | None:
        if self._idle and timeout is not None:
            self._idle -= 1
            return None
        gate = self._engine.gate
        while gate is not None and not self.is_ended and not gate.wait(0.005):
            pass
        if self._given == self._engine.fail_at and self._engine.failure is not None:
            self.fail(self._engine.failure)
        elif self._outputs and not self.is_ended:
            self._given += 1
            self.feed(self._outputs.pop(0))
        return super().get(timeout)


def _outputs(engine: ScriptedEngine, submission: Submission) -> list[RequestOutput]:
    sampling = submission.sampling
    rows = [_rows(engine, submission, index) for index in range(sampling.n)]
    rows[0][0].prompt_logprobs = _prompt_logprobs(submission)
    return [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)]


def _rows(engine: ScriptedEngine, submission: Submission, index: int) -> list[RequestOutput]:
    sampling = submission.sampling
    ids, reason, stop_id = _cut(engine.script(submission.prompt, sampling, index), sampling)
    step = engine.tokens_per_step
    outputs = [
        RequestOutput(
            sequence_index=index,
            token_ids=ids[i : i + step],
            logprobs=_logprobs(ids[i : i + step], sampling.logprobs),
            num_prompt_tokens=len(submission.prompt),
            num_cached_tokens=engine.cached_tokens,
            queue_time_us=engine.queue_time_us,
        )
        for i in range(0, len(ids), step)
    ]
    if sampling.pooling:
        outputs[0].pooled = array("f", states(submission.prompt, sampling.pooling))
    outputs[-1].finish_reason = reason
    outputs[-1].stop_token_id = stop_id
    return outputs


def states(prompt: list[int], pooling: str) -> list[float]:
    """The made-up last hidden states of a prompt: token k has (k, -1, 2)."""
    rows = [(float(id_), -1.0, 2.0) for id_ in prompt]
    return (
        list(rows[-1]) if pooling == "last" else [sum(column) for column in zip(*rows, strict=True)]
    )


def _cut(ids: Sequence[int], sampling: SamplingParams) -> tuple[list[int], str, int | None]:
    """Apply end tokens and max_tokens as the engine does."""
    for position, id_ in enumerate(ids[: sampling.max_tokens], start=1):
        ends = id_ in sampling.stop_token_ids or (id_ == EOS and not sampling.ignore_eos)
        if ends and position > sampling.min_tokens:
            return list(ids[:position]), "stop", id_
    if len(ids) < sampling.max_tokens:
        raise InvalidRequestError("The script is too short.")
    return list(ids[: sampling.max_tokens]), "length", None


def _logprobs(ids: Sequence[int], k: int | None) -> list[list[Logprob]]:
    return [] if k is None else [candidates(id_, k) for id_ in ids]


def _prompt_logprobs(submission: Submission) -> list[list[Logprob]]:
    k = submission.sampling.prompt_logprobs
    return [] if k is None else [candidates(id_, k) for id_ in submission.prompt[1:]]


def candidates(id_: int, k: int) -> list[Logprob]:
    """The chosen token, then the k most likely; ids divisible by 7 are not the most likely."""
    rank = 3 if id_ % 7 == 0 else 1
    others = [(id_ + j) % VOCAB_SIZE for j in range(1, k + 3)]
    ranked = [*others[: rank - 1], id_, *others[rank - 1 :]]
    scored = [(token, _logprob(position), position) for position, token in enumerate(ranked, 1)]
    return [scored[rank - 1], *scored[:k]]


def _logprob(rank: int) -> float:
    """A float32 that has no short decimal form."""
    return -math.ldexp(round(math.ldexp(0.1 * rank, 24)), -24)
