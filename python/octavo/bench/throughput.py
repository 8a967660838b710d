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
    return {
        "requests": len(items),
        "duration_s": totals.seconds,
        "prompt_tokens": totals.prompt_tokens,
        "output_tokens": totals.output_tokens,
        "requests_per_s": len(items) / totals.seconds,
        "output_tokens_per_s": totals.output_tokens / totals.seconds,
        "total_tokens_per_s": tokens / totals.seconds,
        "preemptions": int(totals.stats.get("num_preemptions", 0)),
        "steps": int(totals.stats.get("num_steps", 0)),
        "prefix_hit_tokens": int(totals.stats.get("num_prefix_hit_tokens", 0)),
    }
