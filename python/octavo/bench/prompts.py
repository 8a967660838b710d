"""`octavo bench prompts`: long prompts on a server, for themselves and for the streams beside them.

First the time to the first token of a prompt that the server has not seen and of the same prompt
again, by length: what the prefix cache saves. Then streams of short prompts run while long ones
arrive one by one: the gaps between the streams' events meanwhile, and the long prompts' times.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo.bench.load import LoadGenerator
from octavo.bench.report import summary
from octavo.bench.serve import LoadError
from octavo.bench.workloads import Item, fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.bench.load import Record, Target

STREAM_IN = 32
SETTLE_S = 2.0  # the streams run for so long before the first long prompt
PROMPT_OUT = 2
PREFIX_SEED, LONG_SEED = 1000, 2000  # ids that no other workload has


@dataclass(frozen=True)
class Plan:
    """What is sent.

    Attributes:
        lengths: Tokens of the prompts that are sent again.
        repeats: How often each is sent again; the median counts.
        num_streams: Streams beside the long prompts; 0 leaves that part out.
        stream_tokens: Output tokens of each stream.
        num_arrivals: Long prompts that arrive.
        arrival_tokens: Tokens of each.
        gap_s: Seconds between them.
    """

    lengths: Sequence[int]
    repeats: int
    num_streams: int
    stream_tokens: int
    num_arrivals: int
    arrival_tokens: int
    gap_s: float


def measure(target: Target, plan: Plan) -> dict[str, object]:
    """Both parts.

    Raises:
        LoadError: A request failed, or the streams ended before the last long prompt's answer.
    """
    figures: dict[str, object] = {}
    for index, length in enumerate(plan.lengths):
        (prompt,) = fixed(1, length, PROMPT_OUT, seed=PREFIX_SEED + index)
        times = [ttft_ms(_send(target, [prompt])[0]) for _ in range(plan.repeats + 1)]
        figures[f"ttft_ms_first_{length}"] = times[0]
        figures[f"ttft_ms_again_{length}"] = statistics.median(times[1:])
    if plan.num_streams:
        figures |= interruption(_send(target, arrivals(plan)), plan)
    return figures


def arrivals(plan: Plan) -> list[Item]:
    """The streams at once, then the long prompts one by one."""
    streams = fixed(plan.num_streams, STREAM_IN, plan.stream_tokens)
    prompts = fixed(plan.num_arrivals, plan.arrival_tokens, PROMPT_OUT, seed=LONG_SEED)
    return streams + [
        replace(prompt, arrival_s=SETTLE_S + index * plan.gap_s)
        for index, prompt in enumerate(prompts)
    ]


def interruption(records: Sequence[Record], plan: Plan) -> dict[str, object]:
    """The streams' gaps from the first long prompt's arrival to the last one's first token.

    Raises:
        LoadError: A stream ended before that.
    """
    prompts = [r for r in records if r.expected_tokens == PROMPT_OUT]
    streams = [r for r in records if r.expected_tokens != PROMPT_OUT]
    begin_s = min(record.sent_s for record in prompts)
    end_s = max(record.event_s[0] for record in prompts)
    if any(record.event_s[-1] < end_s for record in streams):
        raise LoadError(f"the streams ended too early: more than {plan.stream_tokens} tokens each")
    gaps_ms = [
        (late - early) * 1e3
        for record in streams
        for early, late in zip(record.event_s, record.event_s[1:], strict=False)
        if late >= begin_s and early <= end_s
    ]
    return {
        "itl_ms": summary(gaps_ms),
        "long_prompt_ttft_ms": summary([ttft_ms(record) for record in prompts]),
    }


def ttft_ms(record: Record) -> float:
    """Time to the first token of an answer that came."""
    return (record.event_s[0] - record.sent_s) * 1e3


def _send(target: Target, items: Sequence[Item]) -> list[Record]:
    generator = LoadGenerator(target)
    records = generator.run(items, concurrency=None)
    generator.close()
    for record in records:
        if record.error or not record.event_s:
            raise LoadError(f"{target.url}: {record.error or 'an answer without a token'}")
    return records
