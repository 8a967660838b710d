"""Throughput and latency against an engine whose speed is set by the test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from octavo.bench import latency, offline, throughput
from octavo.bench.offline import OfflineEngine
from octavo.bench.workloads import fixed, sharegpt_like
from octavo.engine.protocol import RECORD
from octavo.errors import EngineError

if TYPE_CHECKING:
    from octavo.sampling_params import SamplingParams

PREFILL_S_PER_TOKEN = 0.001
STEP_S = 0.01


class Clock:
    """Stands in for the time module: time passes only where the engine says so."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class SteppedEngine:
    """Prefills everything, then gives each sequence one token a step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.left: dict[int, int] = {}
        self.submitted: list[tuple[bytes, SamplingParams]] = []
        self.steps = 0
        self.fault = ""
        self.is_shut_down = False

    def submit(
        self, number: int, token_ids: bytes, sampling: SamplingParams, lora_id: int = 0
    ) -> None:
        self.left[number] = sampling.max_tokens
        self.submitted.append((token_ids, sampling))
        self.clock.now_s += len(token_ids) // 4 * PREFILL_S_PER_TOKEN

    def stats(self) -> dict[str, float]:
        return {"num_steps": self.steps, "num_preemptions": 2 * self.steps}

    def take_outputs(self, timeout_s: float) -> list[Any] | None:
        if self.fault == "gone":
            return None
        self.steps += 1
        self.clock.now_s += STEP_S
        records, errors = b"", {}
        for number in list(self.left):
            self.left[number] -= 1
            reason = 2 if self.left[number] == 0 else 0
            if self.fault == "error":
                reason, errors[number] = 4, "NaN in the logits"
            elif self.fault == "short":
                reason = 1
            records += RECORD.pack(number, 0, 1, 0, 0, -1, 0, 0, 0, 0, reason)
            if reason:
                del self.left[number]
        return [SimpleNamespace(records=records, errors=errors), SimpleNamespace(records=b"")]

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> SteppedEngine:
    clock = Clock()
    monkeypatch.setattr(offline, "time", clock)
    return SteppedEngine(clock)


def engine_over(stepped: SteppedEngine, max_model_len: int = 4096) -> OfflineEngine:
    info = SimpleNamespace(vocab_size=49152, max_model_len=max_model_len)
    loaded = SimpleNamespace(
        engine=stepped, info=info, to_sampling=lambda params: params, adapters=None
    )
    return OfflineEngine(loaded)  # type: ignore[arg-type]


def test_throughput(stepped: SteppedEngine) -> None:
    items = sharegpt_like(20)
    with engine_over(stepped) as engine:
        figures = throughput.measure(engine, items)
    assert stepped.is_shut_down
    longest = max(i.max_tokens for i in items)
    prompts = sum(len(i.prompt) for i in items)
    seconds = prompts * PREFILL_S_PER_TOKEN + longest * STEP_S
    assert figures["duration_s"] == pytest.approx(seconds)
    assert figures["output_tokens_per_s"] == pytest.approx(
        sum(i.max_tokens for i in items) / seconds
    )
    assert (figures["steps"], figures["preemptions"]) == (longest, 2 * longest)
    token_ids, sampling = stepped.submitted[-1]
    assert token_ids == items[-1].prompt.tobytes()
    assert (sampling.temperature, sampling.ignore_eos) == (0.0, True)


def test_latency(stepped: SteppedEngine) -> None:
    figures = latency.measure(engine_over(stepped), [1, 8], [512, 2048, 4096], repeats=3)
    assert figures["decode_ms_batch_1"] == pytest.approx(STEP_S * 1e3)
    assert figures["decode_ms_batch_8"] == pytest.approx(STEP_S * 1e3)
    assert figures["decode_tokens_per_s_batch_8"] == pytest.approx(8 / STEP_S)
    assert figures["prefill_ms_512"] == pytest.approx(512 + STEP_S * 1e3)
    assert "prefill_ms_2048" in figures
    assert "prefill_ms_4096" not in figures  # with its output it is longer than the model takes


def test_repeats_draw_other_prompts(stepped: SteppedEngine) -> None:
    latency.measure(engine_over(stepped), [], [512], repeats=3)
    prompts = [token_ids for token_ids, _ in stepped.submitted if len(token_ids) == 2048]
    assert len(set(prompts)) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [("error", "NaN in the logits"), ("short", "before its last token"), ("gone", "ended while")],
)
def test_a_fault_ends_the_measurement(stepped: SteppedEngine, fault: str, message: str) -> None:
    stepped.fault = fault
    with pytest.raises(EngineError, match=message):
        engine_over(stepped).run(fixed(3, 8, 5))
