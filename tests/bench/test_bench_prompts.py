"""`octavo bench prompts`: what it sends and what it makes of the answers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from bench.stream_server import StreamServer, completion
from octavo.bench.load import Record, Target
from octavo.bench.prompts import PROMPT_OUT, SETTLE_S, Plan, arrivals, interruption, measure
from octavo.bench.serve import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN = Plan(
    lengths=(16, 40),
    repeats=3,
    num_streams=2,
    stream_tokens=50,
    num_arrivals=2,
    arrival_tokens=300,
    gap_s=0.5,
)


def test_streams_go_first_and_long_prompts_one_by_one() -> None:
    items = arrivals(PLAN)
    assert [item.arrival_s for item in items] == [0.0, 0.0, SETTLE_S, SETTLE_S + 0.5]
    assert [item.max_tokens for item in items] == [50, 50, PROMPT_OUT, PROMPT_OUT]
    assert len(items[2].prompt) == 300
    assert items[2].prompt != items[3].prompt


def test_only_gaps_while_long_prompts_are_under_way_count() -> None:
    streams = [
        Record(0.0, 0.0, [0.1, 0.9, 1.2, 1.6, 2.0, 3.0], expected_tokens=50),
        Record(0.0, 0.0, [0.1, 1.05, 1.15, 2.5], expected_tokens=50),
    ]
    prompts = [
        Record(1.0, 1.0, [1.1, 1.2], expected_tokens=PROMPT_OUT),
        Record(1.5, 1.5, [1.9, 2.0], expected_tokens=PROMPT_OUT),
    ]
    figures: Any = interruption([*streams, *prompts], PLAN)
    gaps = [300, 400, 400, 950, 100, 1350]
    assert figures["itl_ms"]["mean"] == pytest.approx(sum(gaps) / len(gaps))
    assert figures["itl_ms"]["max"] == pytest.approx(1350)
    assert figures["long_prompt_ttft_ms"]["max"] == pytest.approx(400)


def test_streams_that_end_early_are_no_measurement() -> None:
    stream = Record(0.0, 0.0, [0.1, 0.5], expected_tokens=50)
    prompt = Record(0.4, 0.4, [0.6, 0.7], expected_tokens=PROMPT_OUT)
    with pytest.raises(LoadError, match="ended too early"):
        interruption([stream, prompt], PLAN)


def test_the_same_prompt_comes_again() -> None:
    seen: set[tuple[int, ...]] = set()

    def answer(request: dict[str, Any]) -> Iterator[bytes]:
        prompt = tuple(request["prompt"])
        time.sleep(0.0 if prompt in seen else 0.2)
        seen.add(prompt)
        yield from completion(request)

    with StreamServer(answer) as server:
        figures = measure(Target(server.url, "m"), replace(PLAN, num_streams=0))
        assert [len(request["prompt"]) for request in server.requests] == [16] * 4 + [40] * 4
    for length in (16, 40):
        first, again = figures[f"ttft_ms_first_{length}"], figures[f"ttft_ms_again_{length}"]
        assert isinstance(first, float)
        assert isinstance(again, float)
        assert first >= 200
        assert again < first


def test_a_failed_request_fails_the_measurement() -> None:
    def answer(request: dict[str, Any]) -> Iterator[bytes]:
        yield next(completion(request))

    with StreamServer(answer) as server, pytest.raises(LoadError):
        measure(Target(server.url, "m"), PLAN)
