"""`octavo bench throughput`: a whole workload through the engine, all requests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.bench.workloads import fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.bench.offline import OfflineEngine
    from octavo.bench.workloads import Item

WARM_UP_SEED = 99


def measure(engine: OfflineEngine, items: Sequence[Item]) -> dict[str, object]:
    """Warm up with a few requests, then run the workload once.

    Raises:
        EngineError: A request failed.
    """
    engine.run(fixed(8, 64, 16, seed=WARM_UP_SEED))
    totals = engine.run(items)
    tokens = totals.prompt_tokens + totals.output_tokens
    stats = totals.stats
    busy_s = stats.get("step_seconds", 0.0) - stats.get("wait_seconds", 0.0)
    steps = int(stats.get("num_steps", 0))
    return {
        "requests": len(items),
        "duration_s": totals.seconds,
        "prompt_tokens": totals.prompt_tokens,
        "output_tokens": totals.output_tokens,
        "requests_per_s": len(items) / totals.seconds,
        "output_tokens_per_s": totals.output_tokens / totals.seconds,
        "total_tokens_per_s": tokens / totals.seconds,
        "preemptions": int(stats.get("num_preemptions", 0)),
        "steps": steps,
        "engine_thread_us_per_step": busy_s / max(1, steps) * 1e6,
        "prefix_hit_tokens": int(stats.get("num_prefix_hit_tokens", 0)),
    }
