"""`octavo bench latency`: the time of a decode step by batch, and of a prefill by length.

A decode step is (time of 256 outputs - time of one output) / 255 with prompts of 128 tokens, all of
the batch at once; so neither the prefill nor the start of a batch is in it.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from octavo.bench.workloads import fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.bench.offline import OfflineEngine

PROMPT_LEN, OUTPUT_LEN = 128, 256
WARM_UP_SEED = 99
FIRST_SEED = 100  # each repeat draws other ids, so that a prefix cache helps none of them


def measure(
    engine: OfflineEngine, batches: Sequence[int], lengths: Sequence[int], repeats: int
) -> dict[str, object]:
    """Medians over `repeats`, in ms; lengths that the model cannot take are left out.

    Raises:
        EngineError: A request failed.
    """
    engine.run(fixed(4, 64, 16, seed=WARM_UP_SEED))
    seeds = range(FIRST_SEED, FIRST_SEED + repeats)
    figures: dict[str, object] = {}
    for batch in batches:
        step_s = statistics.median(decode_step_s(engine, batch, seed) for seed in seeds)
        figures[f"decode_ms_batch_{batch}"] = step_s * 1e3
        figures[f"decode_tokens_per_s_batch_{batch}"] = batch / step_s
    for length in lengths:
        if length < engine.max_model_len:
            prefill_s = statistics.median(
                engine.run(fixed(1, length, 1, seed=seed)).seconds for seed in seeds
            )
            figures[f"prefill_ms_{length}"] = prefill_s * 1e3
            figures[f"prefill_tokens_per_s_{length}"] = length / prefill_s
    return figures


def decode_step_s(engine: OfflineEngine, batch: int, seed: int) -> float:
    """Seconds of one decode step of `batch` sequences."""
    one = engine.run(fixed(batch, PROMPT_LEN, 1, seed=seed)).seconds
    whole = engine.run(fixed(batch, PROMPT_LEN, OUTPUT_LEN, seed=seed)).seconds
    return (whole - one) / (OUTPUT_LEN - 1)
